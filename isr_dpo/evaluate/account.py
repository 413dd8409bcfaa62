"""The account: what a run has spent on its grader, and hard ceilings on it.

One object a spender, `<run>/account/<spender>.json`, which its spender alone writes, so that pods need no lock: it says
what is spent and up to what its spender may go (`bound`). A spender raises its bound before it sends anything, and only
where the bounds of all, its own new one included, stay below the ceilings. Each writes first and looks then, so of two
that raise theirs at once, one or both see the other and step back: the ceilings hold, whoever is killed. A killed
spender's bound counts as spent: what was under way when it died may have been paid for.
"""

from __future__ import annotations

import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Iterable
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from isr_dpo.errors import BudgetSpent, CorruptOutput
from isr_dpo.mapped import mapped
from isr_dpo.stores import Missing, join, open_store, read_bytes, write_bytes
from isr_dpo.stores.lock import identity

PATIENCE_SECONDS = 90.0
"""How long another's bound may stand still before it counts as spent for good: longer than a request takes."""
POLL_SECONDS = 0.5
_ROUNDING_USD = 1e-9
"""What sums may be off."""


class Amount(NamedTuple):
    """Requests sent, and dollars."""

    requests: int
    usd: float

    def plus(self, other: Amount) -> Amount:
        return Amount(self.requests + other.requests, self.usd + other.usd)

    def within(self, bound: Amount) -> bool:
        return self.requests <= bound.requests and self.usd <= bound.usd + _ROUNDING_USD


NOTHING = Amount(0, 0.0)


class Ceilings(NamedTuple):
    """None: no ceiling."""

    requests: int | None
    usd: float | None

    def broken_by(self, amount: Amount) -> bool:
        too_many = self.requests is not None and amount.requests > self.requests
        return too_many or (self.usd is not None and amount.usd > self.usd + _ROUNDING_USD)


class Spender(BaseModel):
    """One object of the account."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: int
    cost_usd: float
    bound_requests: int
    bound_usd: float
    closed: bool
    """It will spend no more."""
    host: str
    pid: int

    @property
    def spent(self) -> Amount:
        return Amount(self.requests, self.cost_usd)

    @property
    def bound(self) -> Amount:
        return Amount(self.bound_requests, self.bound_usd)

    @property
    def may_fall(self) -> bool:
        """Its bound is above what it has spent, and its process may live."""
        dead = self.host == socket.gethostname() and not _alive(self.pid)
        return self.spent != self.bound and not dead

    @property
    def is_own(self) -> bool:
        """Of this process."""
        return (self.host, self.pid) == (socket.gethostname(), os.getpid())


class Account:
    """The account at `uri` as all its spenders see it."""

    def __init__(self, uri: str, ceilings: Ceilings) -> None:
        self.uri = uri
        self.ceilings = ceilings
        self._closed: dict[str, Spender] = {}

    def spenders(self) -> dict[str, Spender]:
        """By name."""
        names = [name for name in open_store(self.uri).list(self.uri) if name.endswith(".json")]
        unread = [name for name in names if name not in self._closed]
        found = dict(zip(unread, mapped(self._read, unread, threads=min(16, max(1, len(unread)))), strict=True))
        known = {name: spender for name, spender in found.items() if spender is not None}
        self._closed |= {name: spender for name, spender in known.items() if spender.closed}
        return {**self._closed, **known}

    def may_spend(self, name: str) -> bool:
        """Another process is the spender `name`, and may live and spend."""
        spender = self._read(f"{name}.json")
        return spender is not None and spender.may_fall and not spender.is_own

    def put(self, name: str, spent: Amount, bound: Amount, *, closed: bool = False) -> None:
        """Says what the spender `name`, the caller, has spent and may spend."""
        who = identity(name)
        spender = Spender(
            requests=spent.requests,
            cost_usd=spent.usd,
            bound_requests=bound.requests,
            bound_usd=bound.usd,
            closed=closed,
            host=who["host"],
            pid=who["pid"],
        )
        write_bytes(join(self.uri, f"{name}.json"), (spender.model_dump_json(indent=1) + "\n").encode())

    def raised(self, name: str, spent: Amount, before: Amount, bound: Amount) -> bool:
        """Raises the caller's bound from `before`; False: a ceiling forbids it, and the bound is what is spent."""
        self.put(name, spent, bound)
        if self.ceilings == (None, None):
            return True
        if not self.ceilings.broken_by(total(self.spenders().values())):
            return True
        self.put(name, spent, before)
        return False

    def _read(self, name: str) -> Spender | None:
        uri = join(self.uri, name)
        try:
            return Spender.model_validate_json(read_bytes(uri))
        except Missing:
            return None
        except ValidationError as error:
            raise CorruptOutput(
                f"{uri} is damaged, so nobody knows what this run has spent on its grader: mend it, or delete it if "
                "what it held may be spent again"
            ) from error


def total(spenders: Iterable[Spender]) -> Amount:
    """What these have spent at the most."""
    amount = NOTHING
    for spender in spenders:
        amount = amount.plus(spender.bound)
    return amount


def spent(uri: str) -> Amount:
    """What stands in the account at `uri`: what a run has spent on its grader."""
    return total(Account(uri, Ceilings(None, None)).spenders().values())


class Purse:
    """A process's own spending, request by request, from any of its threads. Every attempt is drawn at the most it can
    cost before it is sent, and settled when its cost is known; `ahead` is for how many requests the bound is raised at
    a time.

    A context manager: at its end the bound is what was spent.
    """

    def __init__(self, account: Account, *, ahead: int, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._account = account
        self._ahead = ahead
        self._patience_seconds = patience_seconds
        self._name = f"spender-{secrets.token_hex(8)}"
        self._changed = threading.Condition()
        self._spent = NOTHING
        self._flying = 0
        self._flying_usd = 0.0
        self._bound = NOTHING

    def __enter__(self) -> Purse:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._tighten()

    def draw(self, usd: float) -> None:
        """Before an attempt that can cost so much.

        Raises:
            BudgetSpent: it would break a ceiling, even after all that is under way has been settled.
        """
        with self._changed:
            others = _Others()
            while not self._raised(usd):
                if self._flying:
                    self._changed.wait(timeout=POLL_SECONDS)
                    continue
                others.look(self._account, without=f"{self._name}.json")
                spent = others.bounds.plus(self._spent)
                # Where it would fit, another has raised its bound at the same moment, and both have stepped back.
                fits = not self._account.ceilings.broken_by(spent.plus(Amount(1, usd)))
                if not fits and others.still_seconds >= (self._patience_seconds if others.may_fall else POLL_SECONDS):
                    raise over_ceiling(self._account, spent, Amount(1, usd))
                self._changed.wait(timeout=POLL_SECONDS * (0.5 + random.random()))  # apart from another who waits
            self._spent = self._spent.plus(Amount(1, 0.0))
            self._flying += 1
            self._flying_usd += usd

    def settle(self, drawn: float, usd: float) -> None:
        """An attempt drawn at `drawn` has cost `usd`."""
        with self._changed:
            self._flying -= 1
            self._flying_usd = self._flying_usd - drawn if self._flying else 0.0
            self._spent = self._spent.plus(Amount(0, usd))
            self._changed.notify_all()

    def _committed(self) -> Amount:
        return self._spent.plus(Amount(0, self._flying_usd))

    def _raised(self, usd: float) -> bool:
        """Is the bound high enough for one more, or could it be raised?"""
        need = self._committed().plus(Amount(1, usd))
        if need.within(self._bound):
            return True
        for more in (self._ahead - 1, 0):
            bound = need.plus(Amount(more, more * usd))
            if self._account.raised(self._name, self._spent, self._committed(), bound):
                self._bound = bound
                return True
        self._bound = self._committed()
        return False

    def _tighten(self) -> None:
        if self._bound != NOTHING or self._spent != NOTHING:
            self._bound = self._committed()
            self._account.put(self._name, self._spent, self._bound, closed=not self._flying)


class _Others:
    """The other spenders, and for how long nothing has changed with them."""

    def __init__(self) -> None:
        self._seen: dict[str, Spender] = {}
        self._since = time.monotonic()

    def look(self, account: Account, *, without: str) -> None:
        seen = {name: spender for name, spender in account.spenders().items() if name != without}
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()

    @property
    def still_seconds(self) -> float:
        return time.monotonic() - self._since

    @property
    def may_fall(self) -> bool:
        return any(spender.may_fall for spender in self._seen.values())

    @property
    def bounds(self) -> Amount:
        return total(self._seen.values())


def over_ceiling(account: Account, spent: Amount, wanted: Amount) -> BudgetSpent:
    """What to say where `wanted` on top of `spent` breaks a ceiling."""
    requests, usd = account.ceilings
    if requests is not None and spent.requests + wanted.requests > requests:
        said = f"evaluate.max_requests is {requests}, and this run has sent {spent.requests} ({account.uri})"
        return BudgetSpent(f"{said}: raise it and run again")
    said = f"evaluate.max_cost_usd is {usd or 0:g}, and this run has spent {spent.usd:.4f} dollars ({account.uri})"
    return BudgetSpent(f"{said}; the next grade may cost {wanted.usd:.4f}: raise it and run again")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
