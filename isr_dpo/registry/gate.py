"""The gate: what speaks against a promotion, by the limits of the candidate's recipe. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from isr_dpo.config import Promote
from isr_dpo.registry.evidence import Match, Side


def objections(limits: Promote, match: Match) -> tuple[str, ...]:
    """Every limit that is not kept, with its figures; none: the candidate may follow the champion. Where there is no
    champion yet only the limit of unscored answers applies."""
    return tuple(_objections(limits, match))


def words_ratio(match: Match) -> float | None:
    """Mean words of the candidate's answers over the champion's; None where either has none."""
    if match.champion is None or not match.champion.words or not match.candidate.words:
        return None
    return match.candidate.words / match.champion.words


def unscored_fraction(side: Side) -> float:
    return side.unscored / len(side.grades) if side.grades else 1.0


def _objections(limits: Promote, match: Match) -> Iterator[str]:
    for side in filter(None, (match.candidate, match.champion)):
        share = unscored_fraction(side)
        if share > limits.max_unscored_fraction:
            yield (
                f"{side.unscored} of {len(side.grades)} answers of version {side.version.number} have no score, "
                f"{100 * share:.1f} % (promote.max_unscored_fraction: {limits.max_unscored_fraction:g})"
            )
    if match.champion is None:
        return
    if match.comparison is None:
        yield "no question is scored in both"
        return
    gain = match.comparison.accuracy
    if gain.mean < limits.min_gain:
        yield f"it gains {gain.mean:+.4f} in accuracy (promote.min_gain: {limits.min_gain:g})"
    if gain.low < limits.min_gain_low:
        yield (
            f"its gain may be as low as {gain.low:+.4f}, the lower end of the 95 % interval "
            f"(promote.min_gain_low: {limits.min_gain_low:g})"
        )
    ratio = words_ratio(match)
    if ratio is not None and ratio > limits.max_words_ratio:
        yield (
            f"its answers have {ratio:.2f} times the champion's words, {match.candidate.words:.1f} and "
            f"{match.champion.words:.1f} (promote.max_words_ratio: {limits.max_words_ratio:g})"
        )
