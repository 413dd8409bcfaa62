"""The compat reading: replies as the public scripts read them, so that figures compare with published ones.

Written from their description [C] (the evaluation code of LLaVA-Hound-DPO for both protocols, whose official part goes
back to Video-ChatGPT). They take almost any text for a grade, which is why it is not our default: an apology counts as
the score 1, the word "eyes" as a yes.

caption:
1. The number after the first `Score: ` (that spelling, one blank), whole or with a fraction, on the scale or not.
2. Else the most frequent number of the reply; of several that are equally frequent their mean.
3. Else 1.
   Correct from 3 on.
official, the two figures each by itself:
1. Score: the digits after the first quoted key `score` and a colon, a fraction cut off; a reply without is left out of
   the mean score.
2. Correct where "yes" stands anywhere in the reply, in any case and inside other words too; else wrong where "no" does;
   a reply with neither is left out of the accuracy.

Of both: a prediction that failed, and one to which there is no reply at all, leave the denominator.

One rule is ours [O]: a caption reply that is the JSON object of the protocol's schema is read as its score. The public
scripts never ask for one; their rule 2 would mix the score with the numbers of the explanation.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from isr_dpo.evaluate import caption

_LABELLED = re.compile(r"Score: (\d+(?:\.\d+)?)")
_NUMBER = re.compile(r"\b\d+(?:\.\d+)?\b")
_OFFICIAL = re.compile(r"(['\"])score\1\s*:\s*(\d+)")


class Reading(NamedTuple):
    """What the public scripts make of a reply; None: it is left out of that figure's denominator."""

    score: float | None
    correct: bool | None


def read_caption(reply: str) -> Reading:
    """The caption protocol's rules."""
    score = _caption_score(reply)
    return Reading(_finite(score), score >= caption.CORRECT_FROM)


def read_official(reply: str) -> Reading:
    """The official protocol's rules."""
    found = _OFFICIAL.search(reply)
    said = reply.lower()
    correct = True if "yes" in said else False if "no" in said else None
    return Reading(None if found is None else _finite(float(found.group(2))), correct)


READINGS: Mapping[str, Callable[[str], Reading]] = {"caption": read_caption, "official": read_official}
"""By the protocol's name."""


def _caption_score(reply: str) -> float:
    structured = caption.read_object(reply)
    if structured is not None:
        return structured.score
    labelled = _LABELLED.search(reply)
    if labelled is not None:
        return float(labelled.group(1))
    counts = Counter(float(number) for number in _NUMBER.findall(reply))
    if not counts:
        return 1.0
    most = max(counts.values())
    frequent = [number for number, count in counts.items() if count == most]
    return sum(frequent) / len(frequent)


def _finite(score: float) -> float | None:
    """None for hundreds of digits, which one reply could spoil a mean with [O]."""
    return score if math.isfinite(score) else None
