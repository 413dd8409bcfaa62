"""Preferences: D_t = {V, x, y_w, y_l} from what the judge said, with a count for every dropped row."""

from __future__ import annotations

from collections.abc import Sequence

from isr_dpo.config import Guards
from isr_dpo.errors import GuardTripped
from isr_dpo.records import NOT_ASKED, Judged, Preference

DROPS = ("identical", "empty", "hostile", *NOT_ASKED, "tie", "inconsistent", "unparsed")


def preferences(rows: Sequence[Judged]) -> list[Preference]:
    """The pairs of the rows that have a winner, in their order."""
    return [_preference(row) for row in rows if row.winner is not None]


def _preference(row: Judged) -> Preference:
    assert row.winner is not None
    scores = _shares(row)
    return Preference(
        id=row.id,
        video=row.video,
        prompt=row.prompt,
        chosen=row.responses[row.winner],
        rejected=row.responses[1 - row.winner],
        chosen_score=scores[row.winner] if scores else None,
        rejected_score=scores[1 - row.winner] if scores else None,
    )


def _shares(row: Judged) -> tuple[float, float] | None:
    if not row.probabilities:
        return None
    first = sum(p / (p + q) for p, q in row.probabilities) / len(row.probabilities)
    return round(first, 6), round(1 - first, 6)


def metrics(rows: Sequence[Judged]) -> dict[str, float]:
    """Counts of kept and dropped rows, the judge's health, and the words of Figures 4a and 4b."""
    pairs = preferences(rows)
    judged = [row for row in rows if len(row.probabilities) == 2 and row.outcome != "unparsed"]
    masses = [first + second for row in rows for first, second in row.probabilities]
    shown_first = [p > q for row in judged for p, q in (row.probabilities[0], row.probabilities[1][::-1])]
    consistent = [len({p > q for p, q in row.probabilities}) == 1 for row in judged]
    return {
        "rows": len(rows),
        "pairs": len(pairs),
        **{f"dropped_{reason}": sum(row.outcome == reason for row in rows) for reason in DROPS},
        "tie_rate": _mean([row.outcome == "tie" for row in rows]),
        "chosen_words": _mean([len(pair.chosen.split()) for pair in pairs]),
        "rejected_words": _mean([len(pair.rejected.split()) for pair in pairs]),
        "response_words": _mean([len(text.split()) for row in rows for text in row.responses]),
        **({"order_consistency": _mean(consistent), "first_position_rate": _mean(shown_first)} if judged else {}),
        **({"label_mass": _mean(masses)} if masses else {}),
    }


def guard(now: dict[str, float], first: dict[str, float] | None, limits: Guards, *, where: str) -> None:
    """Stops a loop that is dying. `first` holds round 1's metrics, None in round 1.

    Raises:
        GuardTripped: the share of rows with a pair, the order consistency or the growth of |y_w| is past its limit.
    """
    share = now["pairs"] / max(now["rows"], 1)
    if share < limits.min_pair_fraction:
        drops = ", ".join(f"{reason} {now[f'dropped_{reason}']:.0f}" for reason in DROPS)
        raise GuardTripped(
            f"{where}: {now['pairs']:.0f} of {now['rows']:.0f} rows yield a pair ({share:.1%}), "
            f"guards.min_pair_fraction is {limits.min_pair_fraction:.1%}; dropped: {drops}"
        )
    consistency = now.get("order_consistency", 1.0)
    if consistency < limits.min_order_consistency:
        before = f", round 1 had {first['order_consistency']:.1%}" if first and "order_consistency" in first else ""
        raise GuardTripped(
            f"{where}: the judge agrees with itself in both orders on {consistency:.1%} of rows{before}; "
            f"guards.min_order_consistency is {limits.min_order_consistency:.1%}"
        )
    if first and now["chosen_words"] > limits.max_chosen_growth * first["chosen_words"]:
        raise GuardTripped(
            f"{where}: chosen responses have {now['chosen_words']:.1f} words, {first['chosen_words']:.1f} in round 1; "
            f"guards.max_chosen_growth is {limits.max_chosen_growth:g}"
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
