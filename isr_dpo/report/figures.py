"""The page's figures: what each shows, what its caption says, what is read out in its stead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import MaxNLocator, PercentFormatter

from isr_dpo.config import Judge
from isr_dpo.report import drawing
from isr_dpo.report.data import LogLine, Page
from isr_dpo.report.drawing import FIFTH, FIRST, FOURTH, INK, SECOND, THIRD
from isr_dpo.report.summary import Metrics, PolicySummary

_TRACED = {
    "loss": ("Loss", "DPO loss"),
    "reward_accuracy": ("Reward accuracy", "Share of pairs whose chosen response has the higher implicit reward"),
    "margin": ("Reward margin", "Implicit reward of the chosen response less that of the rejected one, mean"),
}
_REASONS = {"identical": FIRST, "empty": FIFTH, "tie": SECOND, "inconsistent": THIRD, "unparsed": FOURTH}


@dataclass(frozen=True)
class Figure:
    """A figure with its caption; `svg` is None where there is nothing to draw yet."""

    key: str
    title: str
    caption: str
    alt: str
    svg: str | None


@dataclass(frozen=True)
class Section:
    """Figures that belong together; `key` is accuracy, length, judge or training."""

    key: str
    title: str
    note: str
    figures: tuple[Figure, ...]


def sections(page: Page) -> list[Section]:
    """All figures, by what they say."""
    judged = [p for p in page.summary.policies if p.preferences]
    return [
        Section(
            "accuracy",
            "Accuracy and score",
            f"On {page.summary.dev}, {page.grader}; bars are 95 % intervals clustered by video.",
            (_graded(page, "accuracy", "Accuracy"), _graded(page, "score", "Score")),
        ),
        Section(
            "length",
            "Length of the preferred responses",
            "A judge that favours longer answers makes the policy verbose: watch both figures rise together.",
            (_words(judged), _ratio(judged)),
        ),
        Section(
            "judge",
            "Health of the judge",
            _judge_note(page.recipe.judge),
            (_agreement(judged), _drops(judged), _label_mass(judged)),
        ),
        Section(
            "training",
            "Training",
            "DPO, every optimiser step; faint as logged, strong the running mean. Dotted lines part the rounds.",
            tuple(_trace(page.training, key) for key in _TRACED),
        ),
    ]


def _judge_note(judge: Judge) -> str:
    if judge.by != "self":
        return f"The judge of this run is a control, {judge.by}: it is asked for no probabilities."
    orders = "in both orders" if judge.orders == "both" else "in one order"
    return f"The judge is the policy itself, choosing between its own two answers {orders}."


def _graded(page: Page, key: str, title: str) -> Figure:
    dev = page.summary.dev
    graded = [p for p in page.summary.policies if key in p.evaluation.get(dev, {})]
    scale, unit = (100, " %") if key == "accuracy" else (1, "")

    def draw(axes: Any) -> None:
        metrics = [p.evaluation[dev] for p in graded]
        middle = [scale * m[key] for m in metrics]
        spans = [
            [abs(scale * m.get(f"{key}_{end}", m[key]) - y) for m, y in zip(metrics, middle, strict=True)]
            for end in ("low", "high")
        ]
        x = [p.index for p in graded]
        axes.errorbar(x, middle, yerr=spans, color=FIRST, marker="o", capsize=3, elinewidth=1.2)
        drawing.integers(axes, x, "policy")
        if key == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))

    said = ", ".join(f"{p.name} {scale * p.evaluation[dev][key]:.{1 if unit else 2}f}{unit}" for p in graded)
    caption = f"{title} by policy on {dev}, with 95 % intervals; {page.grader}."
    return _figure(f"{key}-by-policy", f"{title} by policy", caption, said, draw if graded else None)


def _words(judged: Sequence[PolicySummary]) -> Figure:
    series = {"chosen": "chosen_words", "rejected": "rejected_words"}
    return _lines(
        judged,
        "words-by-round",
        "Words a response",
        "Mean words of chosen and rejected responses by round (the paper's Fig. 4a).",
        series,
    )


def _ratio(judged: Sequence[PolicySummary]) -> Figure:
    kept = [p for p in judged if p.preferences.get("rejected_words")]

    def draw(axes: Any) -> None:
        drawing.even(axes, 1.0)
        x = [_round(p) for p in kept]
        axes.plot(x, [_length_ratio(p.preferences) for p in kept], color=FIRST, marker="o")
        drawing.integers(axes, x, "round")

    said = _said((p, f"{_length_ratio(p.preferences):.3f}") for p in kept)
    caption = "Words of chosen over words of rejected responses by round (the paper's Fig. 4b); dashed: equal length."
    return _figure("length-ratio", "Length ratio, chosen to rejected", caption, said, draw if kept else None)


def _length_ratio(metrics: Metrics) -> float:
    return metrics["chosen_words"] / metrics["rejected_words"]


def _agreement(judged: Sequence[PolicySummary]) -> Figure:
    caption = (
        "Order consistency: share of pairs with the same winner in both orders. First position: share of verdicts for "
        "the response shown first; dashed: 50 %, no bias."
    )
    series = {"order consistency": "order_consistency", "first position": "first_position_rate"}
    return _lines(judged, "judge-agreement", "Agreement with itself", caption, series, share=True, even=0.5)


def _label_mass(judged: Sequence[PolicySummary]) -> Figure:
    caption = "Probability that the judge gives to its two labels together; a low mass means it does not answer."
    return _lines(judged, "label-mass", "Label mass", caption, {"label mass": "label_mass"}, share=True)


def _drops(judged: Sequence[PolicySummary]) -> Figure:
    kept = [p for p in judged if p.preferences.get("rows")]

    def draw(axes: Any) -> None:
        x, floor = [_round(p) for p in kept], [0.0] * len(kept)
        for reason, colour in _REASONS.items():
            shares = [p.dropped.get(reason, 0) / p.preferences["rows"] for p in kept]
            if any(shares):
                axes.bar(x, shares, bottom=floor, color=colour, width=0.55, label=reason)
                floor = [a + b for a, b in zip(floor, shares, strict=True)]
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylim(0, max(0.05, 1.1 * max(floor)))
        drawing.integers(axes, x, "round")
        if any(floor):
            drawing.legend(axes)

    said = _said((p, f"{1 - p.preferences.get('pairs', 0) / p.preferences['rows']:.1%} dropped") for p in kept)
    caption = "Rows that gave no preference, by reason, as a share of all rows; ties are pairs without a winner."
    return _figure("dropped-rows", "Dropped rows and ties", caption, said, draw if kept else None, size=drawing.NARROW)


def _lines(
    judged: Sequence[PolicySummary],
    key: str,
    title: str,
    caption: str,
    series: Mapping[str, str],
    *,
    share: bool = False,
    even: float | None = None,
) -> Figure:
    """Metrics of the preferences by round, a line each."""
    kept = {label: [p for p in judged if name in p.preferences] for label, name in series.items()}
    kept = {label: policies for label, policies in kept.items() if policies}

    def draw(axes: Any) -> None:
        if even is not None:
            drawing.even(axes, even)
        styles = [{"color": FIRST, "marker": "o"}, {"color": SECOND, "marker": "s"}]
        for style, (label, policies) in zip(styles, kept.items(), strict=False):
            axes.plot(
                [_round(p) for p in policies], [p.preferences[series[label]] for p in policies], label=label, **style
            )
        drawing.integers(axes, [_round(p) for policies in kept.values() for p in policies], "round")
        if share:
            axes.set_ylim(-0.03, 1.03)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        if len(kept) > 1:
            drawing.legend(axes)

    form = ".1%" if share else ".1f"
    said = "; ".join(
        f"{label}: {_said((p, format(p.preferences[series[label]], form)) for p in policies)}"
        for label, policies in kept.items()
    )
    return _figure(key, title, caption, said, draw if kept else None, size=drawing.NARROW if share else drawing.WIDE)


def _trace(training: Mapping[int, Sequence[LogLine]], key: str) -> Figure:
    title, what = _TRACED[key]

    def draw(axes: Any) -> None:
        start = 0
        for index, lines in sorted(training.items()):
            values = [float(getattr(line, key)) for line in lines]
            x = range(start, start + len(values))
            axes.plot(x, values, color=FIRST, linewidth=0.8, alpha=0.35)
            axes.plot(x, _running_mean(values), color=FIRST)
            if start:
                axes.axvline(start, color=INK, linewidth=0.8, linestyle=":")
            name = "seed" if index == 0 else f"r{index}"
            axes.annotate(
                name, (start, 1), xycoords=("data", "axes fraction"), xytext=(3, 2), textcoords="offset points"
            )
            start += len(values)
        axes.set_xlabel("optimiser step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if key == "reward_accuracy":
            axes.set_ylim(-0.03, 1.03)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))

    said = "; ".join(
        f"{f'round {i}' if i else 'seed DPO'} from {getattr(lines[0], key):.3f} to {getattr(lines[-1], key):.3f}"
        for i, lines in sorted(training.items())
    )
    return _figure(
        f"training-{key.replace('_', '-')}",
        title,
        f"{what}, by optimiser step.",
        said,
        draw if training else None,
        size=drawing.NARROW,
    )


def _running_mean(values: Sequence[float]) -> list[float]:
    """Mean of the last values, a tenth of them at a time."""
    width = max(1, len(values) // 10)
    return [sum(values[max(0, i + 1 - width) : i + 1]) / min(width, i + 1) for i in range(len(values))]


def _round(policy: PolicySummary) -> int:
    return policy.index - 1


def _said(values: Any) -> str:
    return ", ".join(f"round {_round(policy)} {value}" for policy, value in values)


def _figure(
    key: str,
    title: str,
    caption: str,
    said: str,
    draw: Callable[[Any], None] | None,
    *,
    size: tuple[float, float] = drawing.WIDE,
) -> Figure:
    if draw is None:
        return Figure(key, title, caption, "", None)
    return Figure(key, title, caption, f"{title}: {said}", drawing.svg(key, draw, size=size))
