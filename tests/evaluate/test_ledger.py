from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from isr_dpo import layout
from isr_dpo.config import Evaluate
from isr_dpo.evaluate.caption import CaptionProtocol
from isr_dpo.evaluate.ledger import Asked, Entry, Ledger
from isr_dpo.evaluate.official import OfficialProtocol
from isr_dpo.evaluate.terms import Terms
from isr_dpo.stores import join
from tests.evaluate.grading import PROTOCOL, entries, grader, number, quick, tasks
from tests.servers.grader_server import Answer, grader_server


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)


def asked(at: int = 0, **changes: Any) -> Asked:
    terms = Terms(Evaluate(grader="openai", model="g"), address="http://g/v1/", run_uri="runs/a")
    return replace(terms.asked(PROTOCOL, tasks(at + 1)[at]), **changes)


def entry(one: Asked, text: str = "Score: 4") -> Entry:
    return Entry(
        key=one.key,
        protocol=one.protocol,
        prompt_digest=one.prompt_digest,
        address=one.address,
        request=dict(one.request),
        structured=False,
        task={"question": "q"},
        text=text,
        prompt_tokens=1,
        completion_tokens=2,
        cost_usd=0.1 + 0.2,
        run_uri="runs/a",
        when="2026-01-01T00:00:00+00:00",
    )


def test_every_part_of_what_is_asked_makes_another_key() -> None:
    one = asked()
    others = [
        asked(1),
        asked(protocol="official"),
        asked(prompt_digest="0"),
        asked(address="http://other/v1/"),
        asked(request={**one.request, "model": "h"}),
        asked(request={**one.request, "temperature": 1.0}),
    ]
    keys = {one.key, *(other.key for other in others)}
    assert len(keys) == 1 + len(others)
    assert asked().key == one.key


def test_an_entry_can_be_audited_by_itself(tmp_path: Path) -> None:
    with grader_server(lambda p, n: Answer(text="I would say four.", usage=(70, 5))) as server:
        grader(server.url, tmp_path / "run", price_prompt_usd=1.0, price_completion_usd=2.0).grade(PROTOCOL, tasks(1))
    (file,) = (tmp_path / "ledger").rglob("*.json")
    tree = json.loads(file.read_text())["entry"]
    assert file.parent.name == tree["key"][:2]
    assert file.stem == tree["key"]
    assert tree["protocol"] == "caption"
    assert tree["prompt_digest"] == PROTOCOL.prompt_digest
    assert tree["request"]["model"] == "grader-1"
    assert tree["request"]["messages"][0]["content"] == PROTOCOL.messages(tasks(1)[0])[0].text
    assert tree["task"] == {"question": "q", "truth": "t", "caption": "c", "prediction": "answer 0 here"}
    assert (tree["text"], tree["model"], tree["finish"]) == ("I would say four.", "grader-1-0718", "stop")
    assert (tree["prompt_tokens"], tree["completion_tokens"]) == (70, 5)
    assert tree["cost_usd"] == pytest.approx(80e-6)
    assert tree["run_uri"] == str(tmp_path / "run")
    assert tree["when"].endswith("+00:00")


@pytest.mark.parametrize("run_uri", ["local", "moto"], indirect=True)
def test_what_was_added_is_found_and_the_first_buyer_wins(run_uri: str) -> None:
    ledger, first = Ledger(join(run_uri, "ledger")), entry(asked(), "first")
    assert ledger.find([first.key]) == {}
    assert ledger.add(first) == first
    assert ledger.add(entry(asked(), "second")) == first
    assert ledger.add(entry(asked(1))).key != first.key
    assert ledger.find([first.key, asked(1).key, asked(2).key]) == {first.key: first, asked(1).key: entry(asked(1))}


def damage_text(content: bytes) -> bytes:
    return content.replace(b"Score: 4", b"Score: 5")


def damage_digest(content: bytes) -> bytes:
    tree = json.loads(content)
    return json.dumps({**tree, "sha256": "0" * 64}).encode()


@pytest.mark.parametrize(
    "damage", [damage_text, damage_digest, lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"\xff\xfe"]
)
def test_a_damaged_entry_is_named_never_trusted_and_bought_again(
    damage: Callable[[bytes], bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "isr_dpo")
    with grader_server() as server:
        grader(server.url, tmp_path / "run").grade(PROTOCOL, tasks(2))
        file, _ = sorted((tmp_path / "ledger").rglob("*.json"))
        file.write_bytes(damage(file.read_bytes()))
        replies = grader(server.url, tmp_path / "run").grade(PROTOCOL, tasks(2))
        assert sorted(r.bought for r in replies) == [False, True]
        assert f"{file} is damaged" in caplog.text
        replies = grader(server.url, tmp_path / "run").grade(PROTOCOL, tasks(2))
    assert len(server.requests) == 3
    assert not any(r.bought for r in replies)
    assert all(r.text == "Explanation: it agrees.\nScore: 4" for r in replies)


def test_an_entry_under_another_grades_name_is_not_taken_for_it(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.add(entry(asked()))
    other = Path(ledger.place(asked(1).key))
    other.parent.mkdir(exist_ok=True)
    other.write_bytes(Path(ledger.place(asked().key)).read_bytes())
    assert ledger.get(asked(1).key) is None


def test_runs_of_a_folder_share_grades_and_pay_once(tmp_path: Path) -> None:
    with grader_server() as server:
        first = grader(server.url, tmp_path / "a").grade(PROTOCOL, tasks(5))
        second = grader(server.url, tmp_path / "b").grade(PROTOCOL, tasks(8))
        elsewhere = grader(server.url, tmp_path / "c", ledger=str(tmp_path / "own")).grade(PROTOCOL, tasks(2))
    assert [r.bought for r in first] == [True] * 5
    assert [r.bought for r in second] == [False] * 5 + [True] * 3
    assert [r.bought for r in elsewhere] == [True] * 2
    assert [r.key for r in second[:5]] == [r.key for r in first]
    assert len(server.requests) == 10
    assert {e.run_uri for e in entries(tmp_path / "a")} == {str(tmp_path / "a"), str(tmp_path / "b")}


def test_runs_side_by_side_buy_hardly_a_grade_twice(tmp_path: Path) -> None:
    with grader_server(lambda prompt, n: Answer(text=f"Score: {number(prompt) % 5 + 1}", hang=0.01)) as server:
        graders = [grader(server.url, tmp_path / name, concurrency=2) for name in "ab"]
        replies: dict[int, Any] = {}

        def work(at: int) -> None:
            replies[at] = graders[at].grade(PROTOCOL, tasks(40))

        threads = [threading.Thread(target=work, args=(at,)) for at in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [r.text for r in replies[0]] == [r.text for r in replies[1]]
    assert len(server.requests) <= 40 + 20, "only those that both had under way at the same moment: 7 on average"


def test_the_same_answer_twice_is_one_grade(tmp_path: Path) -> None:
    told: list[int] = []
    with grader_server() as server:
        replies = grader(server.url, tmp_path / "run").grade(PROTOCOL, [*tasks(2), *tasks(2)], told.append)
    assert len(server.requests) == 2
    assert len(replies) == 4
    assert sum(told) == 4


def test_protocols_do_not_share_grades(tmp_path: Path) -> None:
    with grader_server() as server:
        for protocol in (CaptionProtocol(), OfficialProtocol()):
            grader(server.url, tmp_path / "run").grade(protocol, tasks(1))
    assert len(server.requests) == 2


@pytest.mark.parametrize("run_uri", ["local", "ceph"], indirect=True)
def test_five_thousand_lookups_take_seconds(run_uri: str) -> None:
    ledger = Ledger(join(run_uri, "ledger"))
    ledger.add(entry(asked()))
    keys = [asked().key, *(f"{i:064x}" for i in range(5000))]
    began = time.monotonic()
    assert len(ledger.find(keys)) == 1
    assert time.monotonic() - began < 240, "seconds on a machine that does nothing else"


@pytest.mark.parametrize(
    ("run_uri", "expected"),
    [
        ("runs/demo", "runs/ledger"),
        ("demo", "ledger"),
        ("s3://b/team/run/", "s3://b/team/ledger"),
        ("s3://b/run", "s3://b/ledger"),
        ("s3://b", "s3://b/ledger"),
    ],
)
def test_the_ledger_lies_beside_the_run(run_uri: str, expected: str) -> None:
    assert layout.ledger(run_uri) == expected
