"""The labelling server over real HTTP: who may ask it, what it says, and what a restart finds."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from isr_dpo import layout
from isr_dpo.annotate.choices import ChoiceLog, read_all
from isr_dpo.annotate.server import TOKEN_HEADER, Server
from isr_dpo.annotate.session import open_session
from isr_dpo.cli import main
from isr_dpo.errors import CorruptOutput, DataError, RecipeError
from tests.judged_run import CONTEXT, judged_row, write
from tests.servers.ports import two_free_ports


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def tree(self) -> Any:
        return json.loads(self.body)


class Client:
    """A browser's requests; every header can be replaced, or left out with None."""

    def __init__(self, port: int) -> None:
        self.port = port
        page = self.ask("GET", "/", **{TOKEN_HEADER: None}).body.decode()
        self.token = re.search(r'name="token" content="([^"]+)"', page)[1]  # type: ignore[index]

    def ask(self, method: str, path: str, body: bytes | None = None, **changes: str | None) -> Answer:
        host = f"127.0.0.1:{self.port}"
        headers = {"Host": host, TOKEN_HEADER: getattr(self, "token", None)}
        if method == "POST":
            headers |= {"Origin": f"http://{host}", "Content-Type": "application/json"}
        headers |= {name.replace("_", "-") if name != TOKEN_HEADER else name: v for name, v in changes.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, {name: value for name, value in headers.items() if value is not None})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return Answer(answer.status, content, dict(answer.getheaders()))

    def choose(self, row_id: str, verdict: str, **changes: str | None) -> Answer:
        body = json.dumps({"id": row_id, "verdict": verdict, "seconds": 2.5}).encode()
        return self.ask("POST", "/choices", body, **changes)


@pytest.fixture
def run(tmp_path: Path) -> str:
    write(str(tmp_path / "run"), [judged_row(number) for number in range(10)])
    return str(tmp_path / "run")


@pytest.fixture
def server(run: str) -> Iterator[Server]:
    session = open_session(run, round_index=1, rows=6, seed=0, annotator="anna")
    with Server(session, port=0) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


@pytest.fixture
def client(server: Server) -> Client:
    return Client(server.port)


def kept(run_uri: str) -> list[tuple[str, int | None, str]]:
    return [(c.id, c.choice, c.outcome) for c in read_all(run_uri, 1).get("anna", [])]


def test_a_choice_is_kept_as_the_response_it_meant(client: Client, server: Server, run: str) -> None:
    for item, verdict in zip(server.session.items, ("first", "second", "tie", "unclear"), strict=False):
        assert client.choose(item.id, verdict).status == 200
    items = server.session.items
    assert kept(run) == [
        (items[0].id, items[0].shown_first, "preferred"),
        (items[1].id, 1 - items[1].shown_first, "preferred"),
        (items[2].id, None, "tie"),
        (items[3].id, None, "unclear"),
    ]
    assert client.ask("GET", "/state").tree["labelled"] == ["first", "second", "tie", "unclear", None, None]
    row = read_all(run, 1)["anna"][0]
    assert (row.round, row.annotator, row.seconds, row.video) == (1, "anna", 2.5, items[0].video)
    tree = json.loads(Path(layout.choices(run, 1, "anna")).read_text().splitlines()[2])
    assert tree["choice"] is None
    assert set(tree) == {
        *("id", "video", "round", "annotator", "shown_first", "choice", "outcome", "seconds", "rows_digest")
    }


def test_nothing_that_the_judge_read_or_chose_is_ever_sent(client: Client, server: Server) -> None:
    sent = [client.ask("GET", path) for path in ("/", "/state", "/annotate.js", "/annotate.css")]
    sent += [client.ask("GET", f"/rows/{i}") for i in range(6)] + [client.choose(server.session.items[0].id, "first")]
    everything = b"".join(answer.body for answer in sent)
    assert all(answer.status == 200 for answer in sent)
    for word in (CONTEXT, "the judge's reasons", "winner", "probabilities", "shown_first"):
        assert word.encode() not in everything
    assert set(client.ask("GET", "/rows/0").tree) == {"id", "video", "question", "answers", "frames"}


def test_frames_are_images_in_order(client: Client, server: Server) -> None:
    images = [client.ask("GET", f"/rows/2/frames/{i}") for i in range(8)]
    assert {image.headers["Content-Type"] for image in images} == {"image/webp"}
    assert [image.body for image in images] == server.session.footage.images(server.session.items[2].video)
    assert client.ask("GET", "/rows/2/frames/8").status == 400
    assert client.ask("GET", "/rows/99").status == 400


@pytest.mark.parametrize(
    "changes",
    [
        {TOKEN_HEADER: "guessed"},
        {TOKEN_HEADER: None},
        {TOKEN_HEADER: "\u00e9"},
        {"Host": "evil.example"},
        {"Host": "evil.example:80"},
        {"Host": "127.0.0.1"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": None},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_what_another_site_could_send_changes_nothing(
    client: Client, server: Server, run: str, changes: dict[str, str | None]
) -> None:
    answer = client.choose(server.session.items[0].id, "first", **changes)
    assert answer.status == 403
    assert kept(run) == []


@pytest.mark.parametrize("path", ["/state", "/rows/0", "/rows/0/frames/0"])
def test_rows_and_frames_go_to_the_page_alone(client: Client, path: str) -> None:
    assert client.ask("GET", path, **{TOKEN_HEADER: None}).status == 403
    assert client.ask("GET", path, Host="rebound.example:8410").status == 403


def test_the_page_itself_is_not_given_under_another_name(client: Client) -> None:
    answer = client.ask("GET", "/", Host="rebound.example")
    assert answer.status == 403
    assert client.token.encode() not in answer.body


def test_the_page_may_run_no_script_but_its_own_and_stand_in_no_frame(client: Client) -> None:
    policy = client.ask("GET", "/").headers["Content-Security-Policy"]
    for part in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "form-action 'none'"):
        assert part in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b"[]",
        b'"x"',
        b'{"id": "nobody", "verdict": "first", "seconds": 1}',
        b'{"verdict": "first", "seconds": 1}',
        b'{"id": "ID", "verdict": "third", "seconds": 1}',
        b'{"id": "ID", "verdict": ["first"], "seconds": 1}',
        b'{"id": "ID", "verdict": "first"}',
        b'{"id": "ID", "verdict": "first", "seconds": -1}',
        b'{"id": "ID", "verdict": "first", "seconds": "long"}',
        b'{"id": "ID", "verdict": "first", "seconds": NaN}',
        b'{"id": "ID", "verdict": "first", "seconds": true}',
        b"\xff\xfe",
        b"[" * 4000,
        b'{"id": "' + b"x" * 5000 + b'"}',
    ],
)
def test_a_request_that_says_nothing_sensible_is_refused_and_the_server_goes_on(
    client: Client, server: Server, run: str, body: bytes
) -> None:
    row_id = server.session.items[0].id
    answer = client.ask("POST", "/choices", body.replace(b"ID", row_id.encode()))
    assert answer.status == 400
    assert answer.tree["error"]
    assert kept(run) == []
    assert client.choose(row_id, "tie").status == 200


def test_a_double_submit_counts_once(client: Client, server: Server, run: str) -> None:
    row_id = server.session.items[0].id
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(client.choose(row_id, "first").status)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 6
    assert len(Path(layout.choices(run, 1, "anna")).read_text().splitlines()) == 1


def test_a_connection_that_is_cut_or_sends_half_a_request_does_no_harm(client: Client, server: Server) -> None:
    for start in (b"", b"GET / HT", b"POST /choices HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50\r\n\r\n{"):
        with socket.create_connection(("127.0.0.1", server.port)) as cut:
            cut.sendall(start)
    assert client.ask("GET", "/state").status == 200


def test_a_disk_that_takes_nothing_is_said_and_the_row_stays_open(client: Client, server: Server, run: str) -> None:
    Path(run, "analysis").write_text("in the way")
    answer = client.choose(server.session.items[0].id, "first")
    assert answer.status == 500
    assert "analysis" in answer.tree["error"]
    Path(run, "analysis").unlink()
    assert client.ask("GET", "/state").tree["labelled"] == [None] * 6


def test_damaged_frames_are_named_and_the_other_rows_go_on(run: str) -> None:
    shard = next(Path(layout.frames(run)).glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1])
    session = open_session(run, round_index=1, rows=6, seed=0, annotator="anna")
    with pytest.raises(CorruptOutput, match=r"frames-00000\.tar has"):
        session.item(0)
    assert session.state()["labelled"] == [None] * 6


def test_a_round_without_two_different_answers_has_nothing_to_label(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    write(run, [judged_row(0, responses=("same", "same"), outcome="identical", winner=None)])
    with pytest.raises(DataError, match="none of its 1 rows has two different answers"):
        open_session(run, round_index=1, rows=6, seed=0, annotator="anna")


def test_choices_between_other_answers_are_not_taken_for_these(server: Server, run: str) -> None:
    item = server.session.items[0]
    client = Client(server.port)
    client.choose(item.id, "first")
    other = str(Path(run).parent / "other")
    write(other, [judged_row(number, responses=(f"x {number}", f"y {number}")) for number in range(10)])
    Path(other, "analysis").mkdir()
    Path(layout.choices(other, 1, "anna")).write_bytes(Path(layout.choices(run, 1, "anna")).read_bytes())
    session = open_session(other, round_index=1, rows=6, seed=0, annotator="anna")
    assert len(session.log.standing) == 1
    assert session.state()["labelled"] == [None] * 6


def test_a_port_that_is_taken_is_said_with_the_way_out(server: Server) -> None:
    with pytest.raises(RecipeError, match=rf"--port {server.port}: .*in use; another one, or 0"):
        Server(server.session, port=server.port)
    with pytest.raises(RecipeError, match="--port 70000"):
        Server(server.session, port=70000)


class Served:
    """`isr-dpo annotate` as a process of its own."""

    def __init__(self, run_uri: str, *more: str) -> None:
        command = [sys.executable, "-m", "isr_dpo.cli", "annotate", run_uri, "--round", "1", "--rows", "6"]
        self.process = subprocess.Popen(
            [*command, "--annotator", "anna", "--port", "0", *more],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        assert self.process.stdout is not None
        self.greeting = self.process.stdout.readline()
        self.port = int(self.process.stdout.readline().split(":")[2].partition("/")[0])

    def end(self, how: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(how)
        out, _ = self.process.communicate(timeout=120)
        return self.process.returncode, out


def test_after_kill_9_a_restart_goes_on_where_it_was(run: str) -> None:
    ids = [item.id for item in open_session(run, round_index=1, rows=6, seed=0, annotator="anna").items]
    for labelled in range(3):
        served = Served(run)
        assert f"{labelled} labelled by anna so far" in served.greeting
        client = Client(served.port)
        state = client.ask("GET", "/state").tree["labelled"]
        assert state == ["first"] * labelled + [None] * (6 - labelled)
        assert client.choose(ids[labelled], "first").status == 200
        assert served.end(signal.SIGKILL)[0] == -9
    assert [row_id for row_id, _, _ in kept(run)] == ids[:3]
    assert len(ChoiceLog(layout.choices(run, 1, "anna")).standing) == 3


def test_a_page_of_the_server_before_is_told_to_load_again(run: str) -> None:
    first = Served(run, "--port", str(two_free_ports()))
    old = Client(first.port)
    first.end(signal.SIGKILL)
    second = Served(run, "--port", str(first.port))
    assert old.ask("GET", "/state").status == 403
    assert "load it again" in old.ask("GET", "/state").tree["error"]
    assert Client(second.port).ask("GET", "/state").status == 200
    second.end(signal.SIGKILL)


def test_ctrl_c_ends_cleanly_and_says_what_is_kept(run: str) -> None:
    served = Served(run)
    client = Client(served.port)
    client.choose(client.ask("GET", "/rows/0").tree["id"], "second")
    code, said = served.end(signal.SIGINT)
    assert code == 0
    assert "1 of 6 rows labelled, kept in" in said
    assert "choices-round-01-anna.jsonl" in said


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--round", "7"), 3, "round 7 is not judged"),
        (("--round", "1", "--annotator", "../../x"), 2, "--annotator '../../x': accepted"),
        (("--round", "1", "--annotator", "oracle-x"), 2, "no name that begins with 'oracle'"),
        (("--round", "1", "--rows", "0"), 2, "--rows 0: accepted: 1 or more"),
    ],
)
def test_wrong_input_is_one_line(
    run: str, arguments: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["annotate", run, *arguments]) == code
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
