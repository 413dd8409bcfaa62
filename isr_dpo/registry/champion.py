"""Who is champion: decided from stored grades, moved by alias.

A move is tags first, then the alias `previous`, then `champion`, each a call of its own. A champion therefore stands at
every moment, and a cut after any of them leaves either the old state or one that the next command mends: `previous` on
the champion itself, whose tag `promoted_from` still says who came before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from isr_dpo import removed
from isr_dpo.analyse.runs import open_run
from isr_dpo.config import Promote
from isr_dpo.errors import DataError, GuardTripped, RecipeError
from isr_dpo.mlflow_client import open_client, translated
from isr_dpo.registry import evidence, gate
from isr_dpo.registry.evidence import Match
from isr_dpo.registry.submissions import Submission
from isr_dpo.registry.versions import CHALLENGER, CHAMPION, PREVIOUS, Version, by_alias, find
from isr_dpo.tracking import PREFIX

_GATE = "gate."


@dataclass(frozen=True)
class Decision:
    """`objections`: what speaks against the candidate; none, and it may be promoted. `missing`: evaluations to submit
    before the two can be compared. Without a `match` nothing could be looked at."""

    name: str
    candidate: Version
    champion: Version | None
    limits: Promote
    match: Match | None
    objections: tuple[str, ...]
    missing: tuple[Submission, ...] = ()

    @property
    def stands(self) -> bool:
        """The candidate is the champion already."""
        return self.champion is not None and self.champion.number == self.candidate.number

    @property
    def reason(self) -> str:
        """In a line."""
        if self.stands:
            return f"version {self.candidate.number} is the champion already"
        if self.objections:
            return "; ".join(self.objections)
        if self.champion is None:
            return "there is no champion yet to compare with"
        assert self.match is not None
        assert self.match.comparison is not None
        gain = self.match.comparison.accuracy
        told = f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
        return f"accuracy on {self.match.set} {told} against version {self.champion.number}"


@dataclass(frozen=True)
class Promotion:
    """What `promote` and `rollback` did, or with `dry_run` would do. Versions are numbers as text."""

    name: str
    champion: str
    previous: str | None
    reason: str
    done: bool


def decide(name: str, *, uri: str, version: str | None = None, alias: str = CHALLENGER) -> Decision:
    """Compares `version`, or whatever `alias` points at, with the champion of model `name` on the candidate's dev
    questions, from what their runs hold, by the gate of the candidate's recipe. Changes nothing.

    Args:
        uri: of MLflow.

    Raises:
        RecipeError: no such model, version or alias.
        CorruptOutput: a file of a run differs from its manifest.
        OutsideError: MLflow or a store is away.
    """
    client = open_client(uri, create=False)
    with translated(uri):
        candidate = find(client, name, version=version, alias=alias)
        champion = by_alias(client, name, CHAMPION)
    if champion is not None and champion.number == candidate.number:
        return Decision(name, candidate, champion, Promote(), None, ())
    try:
        limits = open_run(candidate.run_uri).recipe.promote
        found = evidence.gather(candidate, champion)
    except (DataError, RecipeError) as error:
        return Decision(name, candidate, champion, Promote(), None, (str(error),))
    if found.match is None:
        return Decision(name, candidate, champion, limits, None, (found.reason,), found.missing)
    return Decision(name, candidate, champion, limits, found.match, gate.objections(limits, found.match))


def promote(decision: Decision, *, uri: str, force: bool = False, dry_run: bool = False) -> Promotion:
    """Makes the candidate the champion; the champion so far becomes `previous`. With `dry_run` nothing changes.

    Args:
        force: promotes also what the gate refuses.

    Raises:
        GuardTripped: something speaks against it, or the champion is another one by now.
        DataError: its weights were removed.
        OutsideError: MLflow is away.
    """
    name, new = decision.name, decision.candidate
    client = open_client(uri, create=False)
    with translated(uri):
        standing, previous = by_alias(client, name, CHAMPION), by_alias(client, name, PREVIOUS)
    if _number(standing) != _number(decision.champion):
        raise GuardTripped(
            f"{name}: the champion became version {_number(standing)} while this was decided; decide again"
        )
    if decision.stands:
        return Promotion(name, new.number, _number(previous), decision.reason, done=False)
    if decision.objections and not force:
        raise GuardTripped(_refusal(decision))
    removed.refuse(new.source)
    reason = f"{decision.reason} (forced)" if decision.objections else decision.reason
    if not dry_run:
        with translated(uri):
            _drop_tags(client, new)
            _crown(client, new, previous=decision.champion, tags=_gate_tags(decision))
    return Promotion(name, new.number, _number(decision.champion), reason, done=not dry_run)


def rollback(name: str, *, uri: str, dry_run: bool = False) -> Promotion:
    """Makes the previous champion the champion again; the two change places, so a second rollback undoes the first.

    Raises:
        RecipeError: there is no previous champion.
        DataError: its weights were removed.
        OutsideError: MLflow is away.
    """
    client = open_client(uri, create=False)
    with translated(uri):
        champion, previous = by_alias(client, name, CHAMPION), by_alias(client, name, PREVIOUS)
        if champion is not None and previous is not None and previous.number == champion.number:  # a move was cut
            before = champion.tags.get("promoted_from")
            previous = find(client, name, version=before, alias="") if before else None
        if previous is None or champion is None:
            raise RecipeError(f"{name} has no previous champion to go back to; `isr-dpo promote` makes one")
        removed.refuse(previous.source)
        if not dry_run:
            _crown(client, previous, previous=champion, tags={"gate": f"rollback from version {champion.number}"})
    return Promotion(name, previous.number, champion.number, "rolled back", done=not dry_run)


def _refusal(decision: Decision) -> str:
    lines = [f"{decision.name} version {decision.candidate.number} is not promoted:"]
    lines += [f"  - {objection}" for objection in decision.objections]
    if decision.missing:
        lines.append("What makes them comparable, to be run where the pipelines are, and then this command again:")
        lines += [f"  {line}" for made in decision.missing for line in made.lines]
    return "\n".join([*lines, "--force promotes it all the same"])


def _gate_tags(decision: Decision) -> dict[str, str]:
    """How the version got there, for whoever asks later."""
    if decision.objections:
        tags = {"gate": f"forced: {'; '.join(decision.objections)}"[:1000]}
    else:
        tags = {"gate": "passed" if decision.champion is not None else "no champion to compare with"}
    match = decision.match
    if match is None:
        return tags
    tags |= {_GATE + "grader": match.grader.words, _GATE + "set": match.set}
    figures: dict[str, float | None] = {
        "accuracy": match.candidate.accuracy,
        "unscored_fraction": gate.unscored_fraction(match.candidate),
        "words_ratio": gate.words_ratio(match),
    }
    if match.comparison is not None:
        gain = match.comparison.accuracy
        figures |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high, "gain_p_value": gain.p_value}
        figures["questions"] = match.comparison.rows
    return tags | {_GATE + key: repr(value) for key, value in figures.items() if value is not None}


def _drop_tags(client: Any, version: Version) -> None:
    """The figures of an earlier promotion of the same version."""
    for key in version.tags:
        if key.startswith(_GATE):
            client.delete_model_version_tag(version.name, version.number, PREFIX + key)


def _crown(client: Any, new: Version, *, previous: Version | None, tags: Mapping[str, str]) -> None:
    moved = {"promoted_at": datetime.now(UTC).isoformat(timespec="seconds")}
    if previous is not None:
        moved["promoted_from"] = previous.number
    for key, value in {**moved, **tags}.items():
        client.set_model_version_tag(new.name, new.number, PREFIX + key, value)
    if previous is not None:
        client.set_registered_model_alias(new.name, PREVIOUS, previous.number)
    client.set_registered_model_alias(new.name, CHAMPION, new.number)


def _number(version: Version | None) -> str | None:
    return None if version is None else version.number
