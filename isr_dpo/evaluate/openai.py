"""A grader behind any OpenAI-compatible endpoint.

A grade is looked for in the ledger first and bought where it is not there, within the ceilings of the run's account.
Every reply that was paid for enters the ledger in the thread that got it, readable or not, before anything else is done
with it; what is returned is what stands there.
"""

from __future__ import annotations

import functools
import logging
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isr_dpo import layout
from isr_dpo.config import Evaluate
from isr_dpo.endpoint import MAX_RETRIES, Endpoint, Refused
from isr_dpo.errors import BudgetSpent, IsrDpoError, KeyRefused, OutsideError, RecipeError
from isr_dpo.evaluate import Progress, Reply
from isr_dpo.evaluate.account import Account, Ceilings, Purse
from isr_dpo.evaluate.ledger import Asked, Entry, Ledger
from isr_dpo.evaluate.protocol import GradingProtocol, Task
from isr_dpo.evaluate.terms import FORMAT, Terms, body
from isr_dpo.mapped import mapped

if TYPE_CHECKING:
    from isr_dpo.evaluate.batch import Batches

log = logging.getLogger("isr_dpo")


@dataclass(frozen=True)
class Bought:
    """What came of a request: a grade, or a refusal of its content, which costs nothing and is not kept."""

    answer: Entry | Refused
    now: bool = True
    """False: another buyer was faster."""


class OpenAIGrader:
    """Asks as `settings` say, on the account of the run at `run_uri`."""

    def __init__(self, settings: Evaluate, *, run_uri: str, max_retries: int = MAX_RETRIES) -> None:
        self.name = settings.model
        self.model = settings.model
        self._settings = settings
        self._endpoint = open_endpoint(settings, max_retries=max_retries)
        self._terms = Terms(settings, address=self._endpoint.address, run_uri=run_uri)
        self._ledger = Ledger(settings.ledger or layout.ledger(run_uri))
        ceilings = Ceilings(settings.max_requests, settings.max_cost_usd)
        self._account = Account(layout.account(run_uri), ceilings)
        self._run_uri = run_uri
        self._structured = settings.structured != "off"

    def grade(
        self, protocol: GradingProtocol[object], tasks: Sequence[Task], progress: Progress = lambda _: None
    ) -> list[Reply]:
        asked = [self._terms.asked(protocol, task) for task in tasks]
        rows = Counter(one.key for one in asked)
        found = {key: Bought(entry, now=False) for key, entry in self._ledger.find(rows).items()}
        progress(sum(rows[key] for key in found))
        missing = {one.key: one for one in asked if one.key not in found}
        if self._settings.batch:
            self._batches().settle(found)
        if missing:
            buy = self._buy_in_batches if self._settings.batch else self._buy
            found |= buy(list(missing.values()), lambda key: progress(rows[key]))
        return [_reply(one.key, found[one.key]) for one in asked]

    def _buy(self, missing: Sequence[Asked], done: Callable[[str], None]) -> Mapping[str, Bought]:
        """All of them, several at a time; `done` is told the key of each."""
        # In any order: runs that share a ledger and grade the same answers side by side find each other's grades so.
        missing = random.sample(missing, len(missing))
        buyer = _Buyer(tolerated=self._settings.concurrency)
        with Purse(self._account, ahead=min(self._settings.concurrency, len(missing))) as purse:

            def buy(asked: Asked) -> None:
                buyer.attempt(asked.key, lambda: self._bought(asked, purse, buyer.stopped))

            def told(part: Sequence[Asked], number: int) -> None:
                if part[number].key in buyer.bought:
                    done(part[number].key)

            # The first one alone: a wrong key, or a server that is away, is found with one request.
            for part, threads in ((missing[:1], 1), (missing[1:], self._settings.concurrency)):
                mapped(buy, part, threads=threads, done=functools.partial(told, part))
        buyer.conclude(len(missing), self._ledger.uri)
        return buyer.bought

    def _bought(self, asked: Asked, purse: Purse, stopped: threading.Event) -> Bought:
        """One grade: another buyer's meanwhile, or one of our own."""
        standing = self._ledger.get(asked.key)
        if standing is not None:
            return Bought(standing, now=False)
        structured = self._structured
        meter = _Meter(purse, self._terms.worst_usd(asked), stopped)
        try:
            answer = self._endpoint.ask(body(asked, structured=structured), meter)
            if isinstance(answer, Refused):
                if answer.reason != "format":
                    return Bought(answer)
                self._without_format(answer.said)
                return self._bought(asked, purse, stopped)
            entry = self._terms.entry(asked, answer, structured=structured)
            if entry is None:
                error = getattr(answer, "error", None)
                raise OutsideError(f"{self._endpoint.where}: its answer holds no reply: {str(error)[:200]}")
            meter.cost(entry.cost_usd)
            return Bought(self._ledger.add(entry))
        finally:
            meter.close()

    def _buy_in_batches(self, missing: Sequence[Asked], done: Callable[[str], None]) -> Mapping[str, Bought]:
        answers = self._batches().buy(missing, hours=self._settings.batch_hours, done=done)
        return {key: Bought(answer) for key, answer in answers.items()}

    def _batches(self) -> Batches:
        from isr_dpo.evaluate.batch import Batches
        from isr_dpo.evaluate.orders import Orders

        return Batches(
            Orders(layout.batches(self._run_uri)),
            endpoint=self._endpoint,
            terms=self._terms,
            ledger=self._ledger,
            account=self._account,
            structured=lambda: self._structured,
            without_format=self._without_format,
        )

    def _without_format(self, said: str) -> None:
        """The server takes no response format: it is asked without from now on, unless the recipe insists."""
        if self._settings.structured == "on":
            raise RecipeError(
                f"{self._endpoint.where} takes no {FORMAT}, and evaluate.structured is on ({said}): set it to auto"
            )
        if self._structured:
            log.info("%s takes no %s, it is asked without from now on (%s)", self._endpoint.where, FORMAT, said)
        self._structured = False


class _Meter:
    """Sees that each attempt at a request is drawn from the purse before it is sent, and settled."""

    def __init__(self, purse: Purse, worst_usd: float, stopped: threading.Event) -> None:
        self._purse = purse
        self._worst_usd = worst_usd
        self._stopped = stopped
        self._drawn = False

    def sending(self) -> None:
        self.close()
        if self._stopped.is_set():
            raise _Stopped
        self._purse.draw(self._worst_usd)
        self._drawn = True

    def answered(self, status: int) -> None:
        if status != 200:
            self.cost(0.0)

    def cost(self, usd: float) -> None:
        """What the attempt under way has cost."""
        if self._drawn:
            self._purse.settle(self._worst_usd, usd)
        self._drawn = False

    def close(self) -> None:
        """An attempt that nobody answered may have been paid for all the same."""
        self.cost(self._worst_usd)


class _Stopped(IsrDpoError):
    """Another request has shown that none can be answered."""


class _Buyer:
    """What came of each request, from any thread. A request that fails stops the others only where none can be
    answered: so it seems where the very first one fails, or `tolerated` with none answered in between."""

    def __init__(self, *, tolerated: int) -> None:
        self.bought: dict[str, Bought] = {}
        self.stopped = threading.Event()
        self._tolerated = tolerated
        self._errors: list[IsrDpoError] = []
        self._in_a_row = 0
        self._mutex = threading.Lock()

    def attempt(self, key: str, buy: Callable[[], Bought]) -> None:
        """Keeps what `buy` returns, or its error of ours."""
        if self.stopped.is_set():
            return
        try:
            bought = buy()
        except _Stopped:
            return
        except IsrDpoError as error:
            self._failed(error)
        except BaseException:
            self.stopped.set()
            raise
        else:
            with self._mutex:
                self.bought[key] = bought
                self._in_a_row = 0

    def conclude(self, wanted: int, ledger_uri: str) -> None:
        """Raises the gravest error there was, and says what remains."""
        if not self._errors:
            return
        error = max(self._errors, key=_gravity)
        if not isinstance(error, OutsideError):
            raise error
        left = wanted - len(self.bought)
        kept = f"; the {len(self.bought)} bought now stand in {ledger_uri}" if self.bought else ""
        raise type(error)(f"{error}. {left} of {wanted} answers remain ungraded{kept}") from error

    def _failed(self, error: IsrDpoError) -> None:
        with self._mutex:
            self._errors.append(error)
            self._in_a_row += 1
            if _gravity(error) or not self.bought or self._in_a_row >= self._tolerated:
                self.stopped.set()


def open_endpoint(settings: Evaluate, *, max_retries: int = MAX_RETRIES) -> Endpoint:
    """The grader's. Raises RecipeError: there is no usable key."""
    return Endpoint(
        who="grader",
        wanted_by="evaluate.grader is 'openai' (rules is the packaged grader, which needs none)",
        model=settings.model,
        base_url=settings.base_url,
        concurrency=settings.concurrency,
        timeout_seconds=settings.timeout_seconds,
        max_retries=max_retries,
    )


def _gravity(error: IsrDpoError) -> int:
    """0: only this request is known to have failed."""
    if isinstance(error, BudgetSpent):
        return 1
    if isinstance(error, KeyRefused):
        return 2
    return 0 if isinstance(error, OutsideError) else 3


def _reply(key: str, bought: Bought) -> Reply:
    answer = bought.answer
    if isinstance(answer, Refused):
        return Reply("", failure=f"refused by the grader's server: {answer.said}", key=key)
    text = answer.text.strip()
    failure = None
    if not text:
        failure = f"the grader refused: {answer.refusal}" if answer.refusal else "empty reply"
        if answer.finish == "length":
            failure += f": its {answer.completion_tokens} tokens ended before it began (evaluate.reply_tokens)"
    return Reply(
        text,
        failure=failure,
        model=answer.model,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        cost_usd=answer.cost_usd,
        bought=bought.now,
        key=key,
    )
