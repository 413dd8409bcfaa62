"""What stands in <run>/analysis: results that cost a grader or a person, shown as they are."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isr_dpo.analyse.agreement import Agreement
from isr_dpo.analyse.claims import Claims
from isr_dpo.analyse.form import from_json
from isr_dpo.analyse.win_rate import WinRate
from isr_dpo.errors import DataError
from isr_dpo.report.reading import KeptRun
from isr_dpo.stores import join, open_store, read_bytes

KINDS: Mapping[str, type[Any]] = {"win-rate": WinRate, "claims": Claims, "agreement": Agreement}


@dataclass(frozen=True)
class Costly:
    """By kind, in the order of their names."""

    win_rates: tuple[WinRate, ...] = ()
    claims: tuple[Claims, ...] = ()
    agreements: tuple[Agreement, ...] = ()


def costly(run: KeptRun) -> Costly:
    """Reads all of a run's; one that cannot be read is left out and named."""
    folder = join(run.uri, "analysis")
    names = sorted(name for name in open_store(run.uri).list(folder) if name.endswith(".json"))
    found = [run.damage.around(functools.partial(_read, run, join(folder, name))) for name in names]
    return Costly(
        win_rates=tuple(one for one in found if isinstance(one, WinRate)),
        claims=tuple(one for one in found if isinstance(one, Claims)),
        agreements=tuple(one for one in found if isinstance(one, Agreement)),
    )


def _read(run: KeptRun, uri: str) -> Any:
    content = read_bytes(uri)
    try:
        kind = json.loads(content)["kind"]
    except (ValueError, TypeError, KeyError):
        raise DataError(f"{uri}: not the result of an analysis; delete it, or analyse again") from None
    if kind not in KINDS:
        raise DataError(f"{uri}: an analysis of kind {kind!r}, which this report does not know")
    found = from_json(KINDS[kind], content, where=uri)
    if any(run.digest(run.answers_uri(*place)) != digest for place, digest in _answers(run, found)):
        raise DataError(f"{uri}: made from other answers than stand now; analyse again")
    return found


def _answers(run: KeptRun, found: Any) -> list[tuple[tuple[int, str], str]]:
    """Policy and set of the run's answers that a result is made from, with their digests then."""
    if isinstance(found, Claims):
        return [((int(policy), found.set), digest) for policy, digest in found.made_from.items()]
    if isinstance(found, WinRate):
        sides = {"first": found.first, "second": found.second}
        parted = [(*key.split("/", 1), digest) for key, digest in found.made_from.items()]
        own = [(sides[side], name, digest) for side, name, digest in parted if sides[side].uri == run.uri]
        return [((side.policy, name), digest) for side, name, digest in own]
    return []
