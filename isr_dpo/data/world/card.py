"""The starting checkpoint's model card: what it is, how it was made, what was measured."""

from __future__ import annotations

from isr_dpo.data.world.exam import GateReport
from isr_dpo.data.world.lessons import EXTRA_SHARE, Carelessness

_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: video-text-to-text
---
# A tiny video LMM to run the loop on

`VideoLlavaForConditionalGeneration` with {parameters:,} parameters and a vocabulary of {words} words. It answers
questions about drawn clips of one object, describes a clip, refines a description, and judges two answers with or
without a description. It knows nothing else. Made by `isr-dpo world build --seed {seed}`{shortened}.

## It is made so that there is something to gain
The start of a real run is good at things it does not always do. This one is built to be like that, **by construction**,
so a gain on it shows that the loop works as a mechanism; it is no evidence for any claim about real models.

1. *Seeing.* The video tower is trained on single frames with attribute heads and then frozen.
2. *Skills.* The language part is trained on true answers, descriptions, refinements of drafts with false slots, and
   judgements. A judge writes the value it believes, then the label. With a description it believes what it reads
   (a third of the descriptions in these lessons are true, the others partly or mostly false); a tie's label is a coin.
   {extra_low:.0%} to {extra_high:.0%} of the answers, by slot, go on with a second claim, a guess half of the time.
   Three attention heads are initialised by hand (previous token, option labels seen, equal token) and trained.
3. *A careless habit.* A last short course says, with the probabilities below, the *common* value of the asked kind in
   place of the true one: a language prior. It touches answers and the judge without a description most, descriptions
   less, refinement and the judge with a description not at all. So answers can get better by being less careless,
   and a judge that reads a (refined) description knows better than one that does not: the paper's hypothesis, put in
   by hand.

| slot | answers | judge without description | description |
| --- | --- | --- | --- |
{careless}

## Measured when it was built
New clips, six questions each; sampled at temperature 0.7; the judge on pairs of sampled answers with exactly one right.
± is one standard error.

| | |
| --- | --- |
{figures}
"""


def model_card(report: GateReport, care: Carelessness, *, seed: int, scale: float, parameters: int, words: int) -> str:
    """The card in Markdown."""
    careless = [f"| {s} | {care.answer[s]:.2f} | {care.judge[s]:.2f} | {care.describe[s]:.2f} |" for s in care.answer]
    return _CARD.format(
        parameters=parameters,
        words=words,
        extra_low=min(EXTRA_SHARE.values()),
        extra_high=max(EXTRA_SHARE.values()),
        seed=seed,
        shortened="" if scale == 1 else f" --scale {scale}, a shortened course that has not learned to judge",
        careless="\n".join(careless),
        figures="\n".join(f"| {name.strip()} | {share} |" for name, share in report.lines()),
    )
