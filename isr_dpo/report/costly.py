"""What stands in <run>/analysis: results that cost a grader or a person, shown as they are."""

from __future__ import annotations

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
    found = [run.damage.around(lambda name=name: _read(join(folder, name))) for name in names]  # type: ignore[misc]
    return Costly(
        win_rates=tuple(one for one in found if isinstance(one, WinRate)),
        claims=tuple(one for one in found if isinstance(one, Claims)),
        agreements=tuple(one for one in found if isinstance(one, Agreement)),
    )


def _read(uri: str) -> Any:
    content = read_bytes(uri)
    try:
        kind = json.loads(content)["kind"]
    except (ValueError, TypeError, KeyError):
        raise DataError(f"{uri}: not the result of an analysis; delete it, or analyse again") from None
    if kind not in KINDS:
        raise DataError(f"{uri}: an analysis of kind {kind!r}, which this report does not know")
    return from_json(KINDS[kind], content, where=uri)
