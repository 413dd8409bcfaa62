"""The Batch API mode against a double that ends batches in every way, and at every moment of an order."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from isr_dpo import layout
from isr_dpo.errors import BudgetSpent, KeyRefused, OutsideError, RecipeError
from isr_dpo.evaluate import Reply, account, batch, batch_api, orders
from isr_dpo.evaluate.account import Amount
from isr_dpo.evaluate.batch_api import BatchApi
from isr_dpo.evaluate.openai import OpenAIGrader
from isr_dpo.evaluate.orders import Order, Orders
from isr_dpo.evaluate.terms import Terms
from isr_dpo.stores import open_store
from tests.evaluate.grading import GOOD, PROTOCOL, entries, grader, number, quick, settings, tasks
from tests.servers.batches import Batching
from tests.servers.completions import Said
from tests.servers.grader_server import Answer, GraderServer, grader_server

PRICES = {"price_prompt_usd": 2.0, "price_completion_usd": 8.0}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    monkeypatch.setattr(batch, "FIRST_POLL_SECONDS", 0.01)
    monkeypatch.setattr(batch_api, "FIRST_LOOK_SECONDS", 0.01)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def buy(server: GraderServer, run: Path, count: int = 6, **changes: Any) -> list[Reply]:
    return grader(server.url, run, batch=True, **changes).grade(PROTOCOL, tasks(count))


def ordered(run: Path) -> list[Order]:
    return Orders(layout.batches(str(run))).all()


def spent(run: Path) -> Amount:
    return account.spent(layout.account(str(run)))


def test_a_batch_brings_every_grade_at_its_price_and_the_ledger_keeps_it(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "isr_dpo")
    told: list[int] = []

    def answer(prompt: str, n: int) -> Answer:
        return Answer(text=f"Explanation: so\nScore: {number(prompt) % 5 + 1}")

    with grader_server(answer, batching=Batching(polls=3)) as server:
        opened = grader(server.url, run, batch=True, **PRICES)
        replies = opened.grade(PROTOCOL, tasks(12), told.append)
        again = opened.grade(PROTOCOL, tasks(12))
    assert [r.text[-1] for r in replies] == [str(i % 5 + 1) for i in range(12)]
    assert all(r.bought for r in replies)
    assert not any(r.bought for r in again)
    assert [r.text for r in again] == [r.text for r in replies]
    half = (100 * 2e-6 + 10 * 8e-6) / 2
    assert replies[0].cost_usd == pytest.approx(half)
    assert server.requests == []
    assert len(server.prompts) == len(set(server.prompts)) == 12
    assert sum(told) == 12
    assert spent(run) == (12, pytest.approx(12 * half))
    (batch_id,) = server.batching.batches
    assert {entry.batch for entry in entries(run)} == {batch_id}
    assert f"grader batch {batch_id}: in_progress, 0/12 requests" in caplog.text
    assert f"grader batch {batch_id}: completed, 12/12 requests" in caplog.text


def test_unreadable_empty_and_refused_answers_stay_with_their_rows_for_good(run: Path) -> None:
    filtered = Answer(status=400, error={"message": "flagged by the filter", "code": "content_filter"})
    said = {0: GOOD, 1: Answer(text="four, I think"), 2: Answer(text=""), 3: filtered, 4: Answer(text="Score: 77")}
    with grader_server(lambda prompt, n: said[number(prompt)]) as server:
        first, again = buy(server, run, 5), buy(server, run, 5)
    assert len(server.prompts) == 5
    for replies in (first, again):
        assert [PROTOCOL.read(r.text) is not None for r in replies] == [True, False, False, False, False]
        assert [r.failure is None for r in replies] == [True, True, False, False, True]
        assert "flagged by the filter" in str(replies[3].failure)
    assert len(entries(run)) == 4, "a refusal is not bought, and not kept in the ledger"


def test_a_batch_that_goes_on_is_pending_and_the_next_run_fetches_it(run: Path) -> None:
    with grader_server(batching=Batching(polls=2)) as server:
        for _ in range(2):
            with pytest.raises(OutsideError, match=r"batch_\d+ has not ended within evaluate\.batch_hours") as caught:
                buy(server, run, batch_hours=0)
            assert caught.value.retry
        replies = buy(server, run, batch_hours=0)
    assert len(replies) == 6
    assert len(server.batching.batches) == 1
    assert len(server.prompts) == 6


def test_a_run_with_other_questions_in_hand_fetches_all_of_a_batch_that_it_finds(run: Path) -> None:
    with grader_server(batching=Batching(polls=1)) as server:
        with pytest.raises(OutsideError, match="goes on there"):
            buy(server, run, 6, batch_hours=0)
        replies = buy(server, run, 2)
        assert len(entries(run)) == 6
        assert len(replies) == 2
        buy(server, run, 9)
    assert Counter(server.prompts).most_common(1)[0][1] == 1
    assert len(server.prompts) == 9


def test_large_orders_are_split_by_requests_and_by_bytes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "MAX_REQUESTS", 4)
    with grader_server() as server:
        buy(server, run, 10)
        assert [b["request_counts"]["total"] for b in server.batching.batches.values()] == [4, 4, 2]
        length = len(next(iter(server.batching.files.values())).splitlines()[0]) + 1
        monkeypatch.setattr(orders, "MAX_BYTES", int(2.5 * length))
        grader(server.url, run, batch=True).grade(PROTOCOL, tasks(15, 10))
    assert [b["request_counts"]["total"] for b in server.batching.batches.values()] == [4, 4, 2, 2, 2, 1]
    assert max(len(content) for content in list(server.batching.files.values())[-6:]) <= int(2.5 * length)


def cut_after(n: int) -> Said | None:
    return Said(cut=True) if n == 0 else None


def error_after(n: int) -> Said | None:
    return Said(500, {"error": {"message": "late"}}) if n == 0 else None


@pytest.mark.parametrize("said", [cut_after, error_after], ids=["cut", "500"])
def test_an_order_that_gets_no_answer_is_looked_for_before_it_is_repeated(
    said: Callable[[int], Said | None], run: Path
) -> None:
    with grader_server(batching=Batching(created=said)) as server:
        assert len(buy(server, run)) == 6
        assert server.batching.orders == 1
    with grader_server(batching=Batching(refused=said)) as server:
        assert len(buy(server, run.parent / "elsewhere" / "run")) == 6
        assert server.batching.orders == 2
        assert len(server.batching.batches) == 1


def test_batches_of_others_are_no_hindrance_when_one_is_looked_for(run: Path) -> None:
    with grader_server(batching=Batching(created=lambda n: Said(cut=True) if n == 5 else None)) as server:
        for other in range(5):
            grader(server.url, run, batch=True).grade(PROTOCOL, tasks(other + 1, other))
        grader(server.url, run, batch=True).grade(PROTOCOL, tasks(9, 5))
    assert server.batching.orders == 6
    assert len(server.prompts) == 9


class Killed(BaseException):
    """As sudden as kill -9 for what follows in this process."""


@pytest.mark.parametrize(
    "moment",
    [
        "isr_dpo.evaluate.orders.Orders.begin",
        "isr_dpo.evaluate.account.Account.raised",
        "isr_dpo.evaluate.batch_api.BatchApi.order",
        "isr_dpo.evaluate.orders.Orders.with_batch",
        "isr_dpo.evaluate.ledger.Ledger.add",
        "isr_dpo.evaluate.account.Account.put",
        "isr_dpo.evaluate.orders.Orders.end",
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_any_moment_the_next_run_orders_nothing_twice(
    moment: str, when: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    path, _, method = moment.rpartition(".")
    module, _, owner = path.rpartition(".")
    holder = getattr(importlib.import_module(module), owner)
    real = getattr(holder, method)

    def dying(*arguments: Any, **named: Any) -> Any:
        if when == "after":
            real(*arguments, **named)
        raise Killed

    with grader_server() as server:
        with monkeypatch.context() as patch:
            patch.setattr(holder, method, dying)
            with pytest.raises(Killed):
                buy(server, run, **PRICES)
        replies = buy(server, run, **PRICES)
        assert [r.text for r in buy(server, run, max_requests=6, **PRICES)] == [r.text for r in replies]
    assert len(replies) == 6
    assert sorted(Counter(server.prompts).values()) == [1] * 6
    assert len(entries(run)) == 6
    assert spent(run) == (6, pytest.approx(6 * (100 * 2e-6 + 10 * 8e-6) / 2))
    assert [order.ended for order in ordered(run)] == ["completed"]


def elsewhere(name: str) -> dict[str, Any]:
    return {"run_id": name, "host": "another-machine", "pid": 1}


def test_an_order_that_another_pod_is_just_making_is_waited_for(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, looked_twice, looks = threading.Event(), threading.Event(), [0]
    order, find = BatchApi.order, BatchApi.find_patiently

    def slowly(self: BatchApi, label: str, content: bytes) -> Any:
        begun.set()
        assert looked_twice.wait(60)
        return order(self, label, content)

    def looking(self: BatchApi, label: str, *, since: float) -> Any:
        looks[0] += 1
        if looks[0] == 2:
            looked_twice.set()
        return find(self, label, since=since)

    monkeypatch.setattr(BatchApi, "order", slowly)
    monkeypatch.setattr(BatchApi, "find_patiently", looking)
    with grader_server() as server, ThreadPoolExecutor(2) as pods:
        with monkeypatch.context() as patch:
            patch.setattr(account, "identity", elsewhere)
            first = pods.submit(buy, server, run)
            assert begun.wait(60)
        second = pods.submit(buy, server, run)
        assert [r.text for r in second.result()] == [r.text for r in first.result()]
    assert server.batching.orders == 1
    assert sorted(Counter(server.prompts).values()) == [1] * 6
    assert [order.ended for order in ordered(run)] == ["completed"]


def test_an_order_that_another_pod_died_over_is_made_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(*arguments: Any) -> None:
        raise Killed

    with grader_server() as server:
        with monkeypatch.context() as patch:
            patch.setattr(account, "identity", elsewhere)
            patch.setattr(BatchApi, "order", dying)
            with pytest.raises(Killed):
                buy(server, run)
        monkeypatch.setattr(batch, "UPLOAD_SECONDS", 0.2)
        assert len(buy(server, run)) == 6
    assert sorted(Counter(server.prompts).values()) == [1] * 6
    assert spent(run).requests == 6


def test_an_order_that_another_pod_forgets_just_now_is_none(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Orders(layout.batches(str(run)))
    order, read = kept.begin([], structured=False), orders.read_bytes

    def late(uri: str) -> bytes:
        kept.forget(order)
        return read(uri)

    monkeypatch.setattr(orders, "read_bytes", late)
    assert kept.all() == []


def test_what_an_expired_batch_did_not_bring_is_ordered_again(run: Path) -> None:
    def end(n: int) -> str:
        return "expired" if n == 0 else "completed"

    with grader_server(batching=Batching(end=end, brings=lambda n, row: n > 0 or row < 4)) as server:
        replies = buy(server, run, 6)
    assert len(replies) == 6
    assert sorted(Counter(server.prompts).values()) == [1] * 6
    assert [b["request_counts"]["total"] for b in server.batching.batches.values()] == [6, 2]


def test_a_cancelled_batch_keeps_what_it_brought_and_is_not_ordered_again_unasked(run: Path) -> None:
    def end(n: int) -> str:
        return "cancelled" if n == 0 else "completed"

    with grader_server(batching=Batching(end=end, brings=lambda n, row: n > 0 or row < 4)) as server:
        with pytest.raises(OutsideError, match="was cancelled by somebody"):
            buy(server, run)
        assert len(entries(run)) == 4
        assert len(buy(server, run)) == 6
    assert sorted(Counter(server.prompts).values()) == [1] * 6


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("insufficient_quota", BudgetSpent),
        ("billing_hard_limit_reached", BudgetSpent),
        ("model_not_found", RecipeError),
    ],
)
def test_a_batch_that_fails_says_why_and_costs_nothing(code: str, kind: type[Exception], run: Path) -> None:
    batching = Batching(
        end=lambda n: "failed" if n == 0 else "completed",
        errors=lambda n: [{"code": code, "message": "no"}] if n == 0 else [],
    )
    with grader_server(batching=batching) as server:
        with pytest.raises(kind, match=f"{code}: no"):
            buy(server, run)
        assert spent(run) == (0, 0.0)
        assert len(buy(server, run)) == 6


def test_where_too_much_waits_at_the_server_less_is_ordered_and_later(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "FEWEST", 2)
    monkeypatch.setattr(batch, "LONGEST_POLL_SECONDS", 0.01)
    full = [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached."}]
    batching = Batching(end=lambda n: "failed" if n < 2 else "completed", errors=lambda n: full if n < 2 else [])
    with grader_server(batching=batching) as server:
        assert len(buy(server, run, 12)) == 12
    sizes = [b["request_counts"]["total"] for b in server.batching.batches.values()]
    assert sizes == [12, 6, 3, 6, 3]
    assert sorted(Counter(server.prompts).values()) == [1] * 12
    batching = Batching(polls=0, end=lambda n: "failed", errors=lambda n: full)
    with grader_server(batching=batching) as server, pytest.raises(OutsideError, match="Enqueued token limit reached"):
        buy(server, run.parent / "elsewhere" / "run", 12, batch_hours=0)


def test_requests_that_fail_in_every_batch_end_in_an_error_and_not_in_a_loop(run: Path) -> None:
    def answer(prompt: str, n: int) -> Answer:
        return Answer(status=500) if number(prompt) == 2 else GOOD

    with grader_server(answer) as server:
        with pytest.raises(OutsideError, match=r"1 of 6 answers remain ungraded.*500 misbehaving"):
            buy(server, run)
        assert len(server.batching.batches) == 2
    assert len(entries(run)) == 5


def test_a_server_without_structured_output_is_asked_without_in_a_second_batch(run: Path) -> None:
    with grader_server(structured=False) as server:
        assert all(PROTOCOL.read(r.text) for r in buy(server, run))
        assert len(server.batching.batches) == 2
        assert len(server.prompts) == 6
    with (
        grader_server(structured=False) as server,
        pytest.raises(RecipeError, match=r"evaluate\.structured is on"),
    ):
        buy(server, run.parent / "elsewhere" / "run", structured="on")


def test_a_ceiling_cuts_the_order_and_the_next_batch_spends_what_the_first_did_not_need(run: Path) -> None:
    terms = Terms(settings("http://x", batch=True, **PRICES), address="x", run_uri="x")
    worst = terms.worst_usd(terms.asked(PROTOCOL, tasks(1)[0]))
    actual = (600 * 2e-6 + 100 * 8e-6) / 2
    with grader_server(lambda prompt, n: Answer(usage=(600, 100))) as server:
        with pytest.raises(BudgetSpent, match=r"evaluate\.max_cost_usd") as caught:
            buy(server, run, 12, max_cost_usd=2.5 * worst, **PRICES)
        sizes = [b["request_counts"]["total"] for b in server.batching.batches.values()]
        assert sizes[0] == 2
        bought = sum(sizes)
        assert 2.5 * worst - worst < bought * actual <= 2.5 * worst
        assert f"{12 - bought} of 12 answers remain ungraded" in str(caught.value)
        with pytest.raises(BudgetSpent, match=r"evaluate\.max_requests"):
            buy(server, run, 12, max_requests=bought + 2, **PRICES)
        assert len(server.prompts) == bought + 2
        assert len(buy(server, run, 12, **PRICES)) == 12
    assert sorted(Counter(server.prompts).values()) == [1] * 12


def test_a_wrong_key_or_a_server_without_batches_is_named_and_nothing_is_left_behind(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.servers.model_server import Answer as ModelAnswer
    from tests.servers.model_server import model_server

    with model_server(lambda asked, n: ModelAnswer()) as server, pytest.raises(RecipeError, match="no such path"):
        grader(server.url, run, batch=True).grade(PROTOCOL, tasks(2))
    assert ordered(run) == []
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with grader_server() as other, pytest.raises(KeyRefused):
        buy(other, run)
    assert other.served.unknown == 1
    assert ordered(run) == []
    assert spent(run) == (0, 0.0)


@pytest.mark.parametrize("run_uri", ["moto", "ceph"], indirect=True)
@pytest.mark.parametrize("in_batches", [False, True], ids=["one by one", "batches"])
def test_ledger_account_and_orders_work_on_s3(run_uri: str, in_batches: bool) -> None:
    with grader_server() as server:
        for bought in (True, False):
            asked = settings(server.url, batch=in_batches, max_requests=9, **PRICES)
            replies = OpenAIGrader(asked, run_uri=f"{run_uri}/run").grade(PROTOCOL, tasks(9))
            assert [r.bought for r in replies] == [bought] * 9
    assert len(server.prompts) == 9
    assert account.spent(f"{run_uri}/run/account").requests == 9
    assert len(open_store(run_uri).list(f"{run_uri}/ledger")) == 9


def test_a_batch_that_the_server_no_longer_knows_is_named(run: Path) -> None:
    with grader_server(batching=Batching(polls=9)) as server:
        with pytest.raises(OutsideError, match="goes on there"):
            buy(server, run, batch_hours=0)
        (batch_id,) = list(server.batching.batches)
        server.batching.batches.clear()
        with pytest.raises(OutsideError, match=f"knows no batch {batch_id}"):
            buy(server, run)
