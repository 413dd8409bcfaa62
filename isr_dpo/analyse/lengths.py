"""How long responses and answers are: Figures 4a, 4b and 5. Length is a proxy of verbosity hallucination, no more; what
answers claim is counted in `claims`. Words are what stands between blanks [O]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from isr_dpo.analyse.estimate import Estimate, mean, ratio
from isr_dpo.analyse.runs import Run
from isr_dpo.records import Prediction, Preference


@dataclass(frozen=True)
class RoundLengths:
    """Of a round's preferences D_t^pref; round 0 holds the seed preferences."""

    round: int
    chosen: Estimate
    """Words of y_w, mean (Figure 4a)."""
    rejected: Estimate
    """Words of y_l, mean."""
    ratio: Estimate | None
    """Mean words of y_w over mean words of y_l (Figure 4b). A ratio of means [O]: a mean of ratios would be ruled by
    the rows whose rejected response has a word or two."""


@dataclass(frozen=True)
class SetWords:
    """Words of a policy's answers to one evaluation set (Figure 5)."""

    set: str
    policy: int
    words: Estimate | None
    """Mean, over answers; None where there is none."""
    unanswered: int
    """Questions that the model could not be asked; they have no length."""


@dataclass(frozen=True)
class Lengths:
    """Of one run so far: rounds and sets that are not complete are left out."""

    run: str
    context: str
    """The run's context design; `none` is self-rewarding, empty: a benchmark."""
    rounds: tuple[RoundLengths, ...]
    sets: tuple[SetWords, ...]
    """By set, then by policy."""


def lengths(run: Run) -> Lengths:
    """The lengths of a run. Raises CorruptOutput: a file differs from its manifest."""
    rounds = [of_pairs(run.preferences(index) or [], index) for index in (0, *run.rounds)]
    answers = [
        of_answers(predictions, name, policy)
        for name in sorted(run.recipe.data.sets)
        for policy in run.policies
        if (predictions := run.predictions(policy, name)) is not None
    ]
    return Lengths(run.name, run.context, tuple(r for r in rounds if r is not None), tuple(answers))


def of_pairs(pairs: Sequence[Preference], index: int) -> RoundLengths | None:
    """Of round `index`'s pairs; None where there is no pair."""
    videos = [pair.video for pair in pairs]
    chosen = [float(len(pair.chosen.split())) for pair in pairs]
    rejected = [float(len(pair.rejected.split())) for pair in pairs]
    of_chosen, of_rejected = mean(chosen, videos), mean(rejected, videos)
    if of_chosen is None or of_rejected is None:
        return None
    return RoundLengths(index, of_chosen, of_rejected, ratio(chosen, rejected, videos))


def of_answers(predictions: Sequence[Prediction], name: str, policy: int) -> SetWords:
    """Of a policy's answers to the set `name`."""
    answered = [p for p in predictions if p.model_prediction.status == "success"]
    words = [float(len(p.model_prediction.message.split())) for p in answered]
    estimate = mean(words, [p.modal_path for p in answered])
    return SetWords(name, policy, estimate, unanswered=len(predictions) - len(answered))
