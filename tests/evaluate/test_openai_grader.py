from __future__ import annotations

import secrets
import time
from collections.abc import Callable

import pytest

from isr_dpo.config import Evaluate
from isr_dpo.errors import KeyRefused, OutsideError, RecipeError
from isr_dpo.evaluate import Reply, open_grader
from isr_dpo.evaluate.caption import CaptionProtocol
from isr_dpo.evaluate.openai import OpenAIGrader
from isr_dpo.evaluate.protocol import Task
from tests.servers.grader_server import KEY, Answer, grader_server

PROTOCOL = CaptionProtocol()
GOOD = Answer()


def tasks(count: int) -> list[Task]:
    return [Task(caption="c", question="q", truth="t", prediction=f"answer {i} here") for i in range(count)]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def grader(url: str, *, retries: int = 2, timeout_seconds: float = 5.0, concurrency: int = 4) -> OpenAIGrader:
    return OpenAIGrader(
        model="grader-1",
        base_url=url,
        concurrency=concurrency,
        timeout_seconds=timeout_seconds,
        max_retries=retries,
    )


def scripted(*answers: Answer) -> Callable[[str, int], Answer]:
    """Each prompt gets these answers in turn, the last one for ever."""
    return lambda prompt, n: answers[min(n, len(answers) - 1)]


def test_replies_come_in_the_order_of_the_tasks_with_bounded_concurrency() -> None:
    def answer(prompt: str, n: int) -> Answer:
        number = next(i for i in range(20) if f"answer {i} here" in prompt)
        return Answer(text=f"Explanation: {number}\nScore: 3", hang=0.1 if number % 2 else 0.02)

    with grader_server(answer) as server:
        replies = grader(server.url, concurrency=3).grade(PROTOCOL, tasks(12))
    assert [r.text for r in replies] == [f"Explanation: {i}\nScore: 3" for i in range(12)]
    assert server.most_at_once[0] == 3
    assert {prompt for _, prompt in server.requests} == {m.text for t in tasks(12) for m in PROTOCOL.messages(t)}


@pytest.mark.parametrize(
    "bad",
    [Answer(status=500), Answer(status=503), Answer(status=429), Answer(cut=True), Answer(hang=1.2)],
    ids=["500", "503", "429", "cut", "hang"],
)
def test_a_passing_fault_is_retried(bad: Answer) -> None:
    with grader_server(scripted(bad, GOOD)) as server:
        (reply,) = grader(server.url, timeout_seconds=0.5).grade(PROTOCOL, tasks(1))
    assert reply == Reply("Explanation: it agrees.\nScore: 4")
    assert len(server.requests) == 2


def test_the_servers_own_wait_is_honoured() -> None:
    with grader_server(scripted(Answer(status=429, headers={"Retry-After": "2"}), GOOD)) as server:
        grader(server.url).grade(PROTOCOL, tasks(1))
    (first, _), (second, _) = server.requests
    assert second - first >= 2.0


@pytest.mark.parametrize(
    ("bad", "said"),
    [(Answer(status=500), "500 misbehaving"), (Answer(hang=0.6), r"no answer within 0\.2 s in 2 attempts")],
    ids=["500", "hang"],
)
def test_a_grader_that_stays_away_is_an_outside_error_that_names_it(bad: Answer, said: str) -> None:
    with grader_server(scripted(bad)) as server, pytest.raises(OutsideError, match=said) as caught:
        grader(server.url, retries=1, timeout_seconds=0.2).grade(PROTOCOL, tasks(1))
    assert server.url in str(caught.value)
    assert caught.value.retry


def test_nobody_listening_is_an_outside_error() -> None:
    with grader_server(scripted(GOOD)) as server:
        pass
    with pytest.raises(OutsideError, match="cannot be reached"):
        grader(server.url, retries=0).grade(PROTOCOL, tasks(1))


def test_an_invalid_key_stops_at_once_and_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = secrets.token_hex(16)
    monkeypatch.setenv("OPENAI_API_KEY", wrong)
    began = time.monotonic()
    with grader_server(scripted(GOOD)) as server, pytest.raises(KeyRefused, match="refuses the key") as caught:
        grader(server.url, concurrency=1).grade(PROTOCOL, tasks(50))
    assert time.monotonic() - began < 5
    assert wrong not in str(caught.value)
    assert "OPENAI_API_KEY" in str(caught.value)


@pytest.mark.parametrize("key", [None, "", "sk-with\nbreak", "sk-ümlaut"])
def test_a_missing_or_broken_key_is_named_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    if key is None:
        monkeypatch.delenv("OPENAI_API_KEY")
    else:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(RecipeError, match="OPENAI_API_KEY") as caught:
        grader("http://127.0.0.1:1/v1")
    assert not key or key not in str(caught.value)


def test_an_unknown_model_stops_and_says_what_the_server_said() -> None:
    unknown = Answer(status=404, error={"message": "no model grader-1"})
    with grader_server(scripted(unknown)) as server, pytest.raises(RecipeError, match="404 no model grader-1"):
        grader(server.url).grade(PROTOCOL, tasks(3))


def test_content_that_the_server_refuses_leaves_only_its_own_row_unscored() -> None:
    refused = Answer(status=400, error={"message": "filtered", "code": "content_filter"})
    with grader_server(lambda prompt, n: refused if "answer 1 here" in prompt else GOOD) as server:
        replies = grader(server.url).grade(PROTOCOL, tasks(3))
    assert [r.failure is None for r in replies] == [True, False, True]
    assert "filtered" in str(replies[1].failure)


@pytest.mark.parametrize("text", ["", "  \n", None])
def test_an_empty_reply_is_a_failure_of_its_row(text: str | None) -> None:
    with grader_server(scripted(Answer(text=text))) as server:
        assert grader(server.url).grade(PROTOCOL, tasks(1)) == [Reply("", failure="empty reply")]


def test_the_recipe_opens_the_grader_by_its_name() -> None:
    assert open_grader(Evaluate(), run_uri="run").name == "rule-based"
    asked = Evaluate(grader="openai", model="grader-1", base_url="http://127.0.0.1:1/v1")
    opened = open_grader(asked, run_uri="run")
    assert (opened.name, opened.model) == ("grader-1", "grader-1")


@pytest.mark.parametrize("which", ["rules", "openai"])
def test_every_grader_replies_once_a_task_in_a_form_the_protocol_reads(which: str) -> None:
    with grader_server(scripted(GOOD)) as server:
        opened = open_grader(Evaluate.model_validate({"grader": which, "base_url": server.url}), run_uri="run")
        replies = opened.grade(PROTOCOL, tasks(3))
        assert opened.grade(PROTOCOL, []) == []
    assert len(replies) == 3
    assert all(PROTOCOL.read(r.text) is not None for r in replies)
