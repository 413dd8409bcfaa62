from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from isr_dpo import layout
from isr_dpo.config import SECTIONS, Evaluate, Recipe
from isr_dpo.errors import BudgetSpent, CorruptOutput
from isr_dpo.evaluate import account
from isr_dpo.evaluate.account import NOTHING, Account, Amount, Ceilings, Purse, total
from isr_dpo.evaluate.terms import Terms
from isr_dpo.stores import join
from tests.evaluate.grading import GOOD, PROTOCOL, entries, grader, quick, scripted, settings, tasks
from tests.servers.grader_server import Answer, grader_server

PRICES = {"price_prompt_usd": 2.0, "price_completion_usd": 8.0}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)


def spent(run: Path) -> Amount:
    return account.spent(layout.account(str(run)))


def test_a_ceiling_on_requests_holds_and_what_was_bought_is_kept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with grader_server() as server:
        with pytest.raises(BudgetSpent) as caught:
            grader(server.url, run, max_requests=7).grade(PROTOCOL, tasks(20))
        assert len(server.requests) == 7
        said = str(caught.value)
        assert "evaluate.max_requests is 7, and this run has sent 7 " in said
        assert "raise it and run again. 13 of 20 answers remain ungraded; the 7 bought now stand in" in said
        assert not caught.value.retry
        assert len(entries(run)) == 7

        with pytest.raises(BudgetSpent, match="13 of 13 answers remain"):
            grader(server.url, run, max_requests=7).grade(PROTOCOL, tasks(20))
        assert len(server.requests) == 7, "a restart does not begin to count anew"

        replies = grader(server.url, run, max_requests=20).grade(PROTOCOL, tasks(20))
    assert len(server.requests) == 20
    assert [r.bought for r in replies].count(True) == 13
    assert spent(run).requests == 20


def test_what_stands_in_the_ledger_needs_no_budget(tmp_path: Path) -> None:
    with grader_server() as server:
        grader(server.url, tmp_path / "a").grade(PROTOCOL, tasks(5))
        grader(server.url, tmp_path / "b", max_requests=0).grade(PROTOCOL, tasks(5))
        with pytest.raises(BudgetSpent, match="1 of 1 answers remain"):
            grader(server.url, tmp_path / "b", max_requests=0).grade(PROTOCOL, tasks(6))
    assert len(server.requests) == 5


def test_repeated_attempts_count(tmp_path: Path) -> None:
    with grader_server(scripted(Answer(status=500))) as server, pytest.raises(BudgetSpent, match="max_requests"):
        grader(server.url, tmp_path / "run", retries=5, max_requests=3).grade(PROTOCOL, tasks(1))
    assert len(server.requests) == 3


def test_a_ceiling_on_money_holds_at_the_worst_each_request_can_cost(tmp_path: Path) -> None:
    run = tmp_path / "run"
    terms = Terms(settings("http://x", **PRICES), address="x", run_uri="x")
    worst = terms.worst_usd(terms.asked(PROTOCOL, tasks(1)[0]))
    actual = 600 * 2e-6 + 100 * 8e-6
    ceiling = 4 * worst
    with grader_server(scripted(Answer(usage=(600, 100)))) as server:
        with pytest.raises(
            BudgetSpent, match=r"max_cost_usd is 0\.\d+, and this run has spent 0\.\d+ dollars"
        ) as caught:
            grader(server.url, run, max_cost_usd=ceiling, **PRICES).grade(PROTOCOL, tasks(20))
        bought = len(server.requests)
        # another one would fit only if it cost less than it may
        assert ceiling - worst < bought * actual <= ceiling
        assert f"{20 - bought} of 20 answers remain ungraded" in str(caught.value)
        assert spent(run).usd == pytest.approx(bought * actual)
        grader(server.url, run, max_cost_usd=1.0, **PRICES).grade(PROTOCOL, tasks(20))
    assert len(server.requests) == 20
    assert spent(run) == (20, pytest.approx(20 * actual))


def test_an_attempt_that_nobody_answered_counts_at_its_worst_and_a_refused_one_costs_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    terms = Terms(settings("http://x", **PRICES), address="x", run_uri="x")
    worst, actual = terms.worst_usd(terms.asked(PROTOCOL, tasks(1)[0])), 100 * 2e-6 + 10 * 8e-6
    with grader_server(scripted(Answer(cut=True), Answer(status=429), GOOD)) as server:
        grader(server.url, run, **PRICES).grade(PROTOCOL, tasks(1))
    assert spent(run) == (3, pytest.approx(worst + actual))


def test_a_reply_without_usage_counts_at_its_worst(tmp_path: Path) -> None:
    with grader_server(scripted(Answer(usage=None))) as server:
        (reply,) = grader(server.url, tmp_path / "run", **PRICES).grade(PROTOCOL, tasks(1))
    terms = Terms(settings("http://x", **PRICES), address="x", run_uri="x")
    assert reply.cost_usd == pytest.approx(terms.worst_usd(terms.asked(PROTOCOL, tasks(1)[0])))


def test_the_worst_case_bounds_tokens_by_bytes(tmp_path: Path) -> None:
    settings_ = Evaluate(grader="openai", reply_tokens=100, **PRICES)  # type: ignore[arg-type]
    terms = Terms(settings_, address="x", run_uri="x")
    asked = terms.asked(PROTOCOL, tasks(1)[0])
    text = "".join(m.text for m in PROTOCOL.messages(tasks(1)[0]))
    assert terms.worst_usd(asked) >= len(text.encode()) * 2e-6 + 100 * 8e-6
    batch = Terms(settings_.model_copy(update={"batch": True}), address="x", run_uri="x")
    assert batch.worst_usd(asked) == pytest.approx(terms.worst_usd(asked) / 2)


@pytest.mark.parametrize(
    ("ceiling", "ahead", "tasks_each"), [(20, 4, 25), (20, 4, 10), (7, 8, 4)], ids=["too little", "just", "too many"]
)
@pytest.mark.parametrize("run_uri", ["local", "moto"], indirect=True)
def test_spenders_side_by_side_never_break_a_ceiling_and_can_use_it_up(
    run_uri: str, ceiling: int, ahead: int, tasks_each: int
) -> None:
    drawn = []
    refused = []

    def spend(books: Account) -> None:
        try:
            with Purse(books, ahead=ahead) as purse:
                for _ in range(tasks_each):
                    purse.draw(0.25)
                    drawn.append(1)
                    purse.settle(0.25, 0.1)
        except BudgetSpent as error:
            refused.append(error)

    uri = join(run_uri, "account")
    threads = [threading.Thread(target=spend, args=(Account(uri, Ceilings(ceiling, None)),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drawn) <= ceiling
    assert len(drawn) == min(2 * tasks_each, ceiling)
    assert bool(refused) == (len(drawn) < 2 * tasks_each)
    books = Account(uri, Ceilings(None, None))
    assert total(books.spenders().values()) == (len(drawn), pytest.approx(0.1 * len(drawn)))


def test_two_evaluations_side_by_side_stay_under_one_ceiling(tmp_path: Path) -> None:
    run, refused = tmp_path / "run", []
    with grader_server(lambda prompt, n: Answer(hang=0.02)) as server:

        def work(start: int) -> None:
            try:
                grader(server.url, run, max_requests=24).grade(PROTOCOL, tasks(start + 20, start))
            except BudgetSpent as error:
                refused.append(error)

        threads = [threading.Thread(target=work, args=(start,)) for start in (0, 20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(server.requests) == 24
    assert refused
    assert len(entries(run)) == len(server.requests)


def test_a_killed_spenders_bound_counts_as_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    books = Account(str(tmp_path), Ceilings(10, None))
    Purse(books, ahead=4).draw(0.0)  # never closed
    (name,) = books.spenders()
    assert total(books.spenders().values()).requests == 4
    monkeypatch.setattr(account, "_alive", lambda pid: False)
    with Purse(books, ahead=4) as purse:
        for _ in range(6):
            purse.draw(0.0)
            purse.settle(0.0, 0.0)
        with pytest.raises(BudgetSpent):
            purse.draw(0.0)
    assert books.spenders()[name].requests == 0


def test_a_living_spender_is_waited_for(tmp_path: Path) -> None:
    books = Account(str(tmp_path), Ceilings(4, None))
    first, second = Purse(books, ahead=4), Purse(books, ahead=4)
    first.draw(0.0)
    threading.Timer(0.2, lambda: (first.settle(0.0, 0.0), first.__exit__())).start()
    second.draw(0.0)
    assert total(books.spenders().values()).requests <= 4


def test_a_living_spender_that_stands_still_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    books = Account(str(tmp_path), Ceilings(4, None))
    Purse(books, ahead=4).draw(0.0)
    with pytest.raises(BudgetSpent):
        Purse(books, ahead=4, patience_seconds=0.2).draw(0.0)


def test_a_damaged_account_stops_a_run_with_ceilings(tmp_path: Path) -> None:
    books = Account(str(tmp_path), Ceilings(4, None))
    books.put("one", NOTHING, NOTHING)
    (tmp_path / "one.json").write_text("{")
    with pytest.raises(CorruptOutput, match=r"one\.json is damaged"):
        Purse(books, ahead=1).draw(0.0)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"max_cost_usd": 5}, "no price_prompt_usd says what a grade costs"),
        ({"max_cost_usd": 5, "price_prompt_usd": 1}, "no price_completion_usd"),
        ({"max_cost_usd": 5, **PRICES, "reply_limit": "none"}, "a reply has no bound"),
        ({"max_requests": -1}, "max_requests"),
    ],
)
def test_a_ceiling_that_cannot_hold_is_refused_by_name(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Evaluate.model_validate(keys)


def test_raising_a_ceiling_leaves_finished_work_standing() -> None:
    def section(**changes: Any) -> dict[str, Any]:
        recipe = Recipe.model_validate(
            {
                "name": "x",
                "iterations": 0,
                "data": {"sets": {"dev": "dev.qa.jsonl"}},
                "answer": {"predictions": {"dev": "p.jsonl"}},
                "evaluate": changes,
            }
        )
        return recipe.section(SECTIONS["evaluate"])

    ceilings = {"max_requests": 9, "max_cost_usd": 9, "ledger": "x", "batch": True, "batch_hours": 1, **PRICES}
    assert section(**ceilings) == section()
    assert section(temperature=1.0) != section()
