"""Grades through OpenAI's Batch API: a file of requests goes up, its answers come back within a day, at half the price.

A batch outlives the process that ordered it. What it is for is written to the run before it is ordered (`orders.py`),
and it carries the order's label as metadata: whoever is killed at any moment, the next process finds the batch, and
nothing is ordered twice. All answers enter the ledger before the order counts as ended.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from isr_dpo.endpoint import Endpoint, Refused, refusal
from isr_dpo.errors import BudgetSpent, IsrDpoError, OutsideError, RecipeError
from isr_dpo.evaluate.account import NOTHING, Account, Amount, over_ceiling, total
from isr_dpo.evaluate.batch_api import UPLOAD_SECONDS, BatchApi
from isr_dpo.evaluate.ledger import LOOKUPS, Asked, Entry, Ledger
from isr_dpo.evaluate.orders import Order, Orders, files, line
from isr_dpo.evaluate.terms import FORMAT, Terms
from isr_dpo.mapped import mapped

if TYPE_CHECKING:
    from openai.types import Batch

log = logging.getLogger("isr_dpo")

FIRST_POLL_SECONDS = 5.0
LONGEST_POLL_SECONDS = 60.0
POLL_FAILURES = 10
"""In a row, before a wait is given up."""
FEWEST = 100
"""Requests of a batch, however little the server lets wait."""
_ENDED = ("completed", "failed", "expired", "cancelled")
_LATER = ("token_limit", "rate_limit", "request_limit", "server_error")
_NO_CREDIT = ("insufficient_quota", "billing")

Answer = Entry | Refused


class Batches:
    """The batches that `orders` tells of, on `account`. `structured` says whether requests carry a response format now,
    `without_format` is told what a server says that takes none."""

    def __init__(
        self,
        orders: Orders,
        *,
        endpoint: Endpoint,
        terms: Terms,
        ledger: Ledger,
        account: Account,
        structured: Callable[[], bool],
        without_format: Callable[[str], None],
    ) -> None:
        self._orders = orders
        self._where = endpoint.where
        self._api = BatchApi(endpoint)
        self._terms = terms
        self._ledger = ledger
        self._account = account
        self._structured = structured
        self._without_format = without_format
        self._failed: Counter[str] = Counter()
        self._no_format: str | None = None
        self._later: str | None = None
        self._at_once: int | None = None

    def buy(self, missing: Sequence[Asked], *, hours: float, done: Callable[[str], None]) -> dict[str, Answer]:
        """All of them by key, waited for at most `hours`; `done` is told each key.

        Raises:
            OutsideError: some batches have not ended by then, or ended without some answers. They, and all that came
                back, are found again.
            BudgetSpent: a ceiling forbids to order the rest.
        """
        wanted = {asked.key: asked for asked in missing}
        deadline = time.monotonic() + hours * 3600
        got: dict[str, Answer] = {}

        def take(answers: Mapping[str, Answer]) -> None:
            new = {key: answer for key, answer in answers.items() if key in wanted and key not in got}
            got.update(new)
            for key in new:
                done(key)

        known = self._known(wanted)
        for order in known:
            take(order.refused)
        while len(got) < len(wanted):
            under_way = [order for order in known if order.ended is None]
            coming = {key for order in under_way for key in order.keys}
            left = [asked for key, asked in wanted.items() if key not in got and key not in coming]
            ordered, spent = self._order(left)
            if spent is not None and not under_way and not ordered:
                raise BudgetSpent(f"{spent}. {self._remain(wanted, got)}") from spent
            before = (len(got), self._structured())
            for answers in self._answers([*under_way, *ordered], deadline):
                take(answers)
            if (len(got), self._structured()) == before:
                self._pause(deadline, self._remain(wanted, got))
            known = []
        return got

    def _known(self, wanted: Mapping[str, Asked]) -> list[Order]:
        """Orders that have to do with what is wanted, with their batches."""
        orders = [order for order in self._orders.all() if not wanted.keys().isdisjoint(order.keys)]
        known = [order if order.batch is not None else self._found(order) for order in orders]
        return [order for order in known if order is not None]

    def _found(self, order: Order) -> Order | None:
        """An order without a batch, once that is found. None: it was never made, and is forgotten; one that another
        process may be making just now is waited for, as long as its requests may take to go up."""
        while True:
            batch = self._api.find_patiently(order.label, since=order.when)
            if batch is not None:
                return self._orders.with_batch(order, batch.id)
            if not self._account.may_spend(order.spender) or time.time() - order.when > UPLOAD_SECONDS:
                self._forget(order)
                return None
            log.info("grader batch: another process is ordering %d requests, which are waited for", len(order.keys))

    def _order(self, left: Sequence[Asked]) -> tuple[list[Order], BudgetSpent | None]:
        """Orders as many as the ceilings allow, and says why not all."""
        structured = self._structured()
        orders: list[Order] = []
        for asked in files(left[: self._at_once], structured=structured):
            part = self._affordable(asked)
            worst = Amount(len(part), sum(self._terms.worst_usd(one) for one in part))
            if part:
                order = self._orders.begin(part, structured=structured)
                if self._account.raised(order.spender, NOTHING, NOTHING, worst):
                    orders.append(self._create(order, part))
                else:  # another took it meanwhile
                    self._orders.forget(order)
                    part = []
            if len(part) < len(asked):
                spent = total(self._account.spenders().values())
                return orders, over_ceiling(self._account, spent, Amount(1, self._terms.worst_usd(asked[len(part)])))
        return orders, None

    def _affordable(self, asked: Sequence[Asked]) -> Sequence[Asked]:
        """As many of the first as the ceilings allow."""
        if self._account.ceilings == (None, None):
            return asked
        amount = total(self._account.spenders().values())
        for count, one in enumerate(asked):
            amount = amount.plus(Amount(1, self._terms.worst_usd(one)))
            if self._account.ceilings.broken_by(amount):
                return asked[:count]
        return asked

    def _create(self, order: Order, asked: Sequence[Asked]) -> Order:
        content = b"".join(line(one, structured=order.structured) for one in asked)
        try:
            batch = self._api.order(order.label, content)
        except IsrDpoError as error:
            if not error.retry:
                self._forget(order)
            raise
        log.info("grader batch %s: ordered, %d requests", batch.id, len(asked))
        return self._orders.with_batch(order, batch.id)

    def _forget(self, order: Order) -> None:
        self._account.put(order.spender, NOTHING, NOTHING, closed=True)
        self._orders.forget(order)

    def _answers(self, orders: Sequence[Order], deadline: float) -> Iterator[Mapping[str, Answer]]:
        """What each batch brings, as they end."""
        waiting, pause, failures = list(orders), FIRST_POLL_SECONDS, 0
        while waiting:
            for order in list(waiting):
                assert order.batch is not None
                try:
                    batch = self._api.look(order.batch)
                except OutsideError as error:
                    failures += 1
                    if not error.retry or failures == POLL_FAILURES:
                        raise
                    log.info("grader batch %s: %s", order.batch, error)
                    continue
                failures = 0
                log.info("grader batch %s: %s", batch.id, _progress(batch))
                if batch.status in _ENDED:
                    waiting.remove(order)
                    yield self._collected(order, batch)
                    self._conclude(order, batch)
            if not waiting:
                return
            left = deadline - time.monotonic()
            if left <= 0:
                ids = ", ".join(str(order.batch) for order in waiting)
                raise OutsideError(
                    f"{self._where}: batch {ids} has not ended within evaluate.batch_hours and goes on there: run "
                    "again to fetch what it brings"
                )
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, LONGEST_POLL_SECONDS)

    def _collected(self, order: Order, batch: Batch) -> Mapping[str, Answer]:
        """What an ended batch brought, once it is in the ledger and paid for in the account."""
        asked = self._orders.asked(order)
        answered, answers = 0, dict[str, Answer]()
        for tree in self._api.lines(batch):
            one = asked.get(tree.get("custom_id", ""))
            if one is None:
                log.warning("grader batch %s: an answer to %r, which was not asked", batch.id, tree.get("custom_id"))
                continue
            answered += 1
            answer = self._answer(tree, one, order, batch)
            if answer is not None:
                answers[one.key] = answer
        bought = [answer for answer in answers.values() if isinstance(answer, Entry)]
        refused = {key: answer for key, answer in answers.items() if isinstance(answer, Refused)}
        standing = mapped(self._ledger.add, bought, threads=LOOKUPS)
        spent = Amount(answered, sum(entry.cost_usd for entry in bought))
        self._account.put(order.spender, spent, spent, closed=True)
        self._orders.end(order, how=batch.status, refused=refused)
        return {**refused, **{entry.key: entry for entry in standing}}

    def _answer(self, line: Mapping[str, Any], asked: Asked, order: Order, batch: Batch) -> Answer | None:
        """None: this request failed; it may be asked again."""
        from openai.types.chat import ChatCompletion

        response = line.get("response") or {}
        tree = response.get("body") or {}
        status = response.get("status_code", 0)
        if status == 200:
            completion = ChatCompletion.construct(**tree)
            return self._terms.entry(asked, completion, structured=order.structured, batch=batch.id)
        error = tree.get("error") or line.get("error") or {}
        said = f"{status or ''} {error.get('message') or error.get('code') or 'no answer'}".strip()[:300]
        formatted = order.structured and FORMAT in asked.request
        refused = refusal(status, error.get("code"), said, formatted=formatted)
        if refused is not None and refused.reason == "format":
            self._no_format = said
            return None
        if refused is None:
            self._failed[f"{error.get('code')}: {said}"] += 1
        return refused

    def _pause(self, deadline: float, remain: str) -> None:
        """After batches without answers: waits where the server has said that more may be ordered later."""
        left = deadline - time.monotonic()
        if self._later is None or left <= 0:
            raise OutsideError(f"{self._where}: its batches ended without answers. {self._later or remain}")
        log.info("%s; more is ordered later", self._later)
        self._later = None
        time.sleep(min(LONGEST_POLL_SECONDS, left))

    def _conclude(self, order: Order, batch: Batch) -> None:
        """What the end of a batch means for further orders; raises what makes them pointless. Where too much waits at
        the server, less is ordered at once from then on, and more again as batches complete [O]."""
        if self._no_format is not None:
            self._without_format(self._no_format)
        errors = (batch.errors.data if batch.errors else None) or []
        said = "; ".join(f"{error.code}: {error.message}" for error in errors) or "no reason given"
        where = f"{self._where}: batch {batch.id}"
        if any(word in reason for word in _NO_CREDIT for reason in (said, *self._failed)):
            raise BudgetSpent(
                f"{where} {batch.status}: there is no credit left ({said}): add some and run again; what was bought is "
                "kept"
            )
        if batch.status == "cancelled":
            raise OutsideError(f"{where} was cancelled by somebody; run again to order what it has not brought")
        if batch.status == "failed" and any(word in said for word in _LATER):
            self._later = f"{where} failed: {said}"
            self._at_once = max(FEWEST, len(order.keys) // 2)
        elif batch.status == "failed":
            raise RecipeError(f"{where} failed: {said}")
        elif self._at_once is not None:
            self._at_once *= 2

    def settle(self, standing: Collection[str]) -> None:
        """Closes the books on batches whose grades all stand in the ledger: an earlier process may have been killed
        over that. One that has not ended is left alone."""
        for order in self._orders.all():
            if order.ended is None and order.batch is not None and set(order.keys) <= set(standing):
                try:
                    batch = self._api.look(order.batch)
                    if batch.status in _ENDED:
                        self._collected(order, batch)
                except OutsideError as error:
                    log.info("grader batch %s: %s", order.batch, error)

    def _remain(self, wanted: Mapping[str, Asked], got: Mapping[str, Answer]) -> str:
        left = len(wanted) - len(got)
        why = "".join(f"; {count} times {reason}" for reason, count in self._failed.most_common(3))
        return f"{left} of {len(wanted)} answers remain ungraded; what was bought stands in {self._ledger.uri}{why}"


def _progress(batch: Batch) -> str:
    counts = batch.request_counts
    return batch.status + (f", {counts.completed + counts.failed}/{counts.total} requests" if counts else "")
