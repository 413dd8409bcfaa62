"""What a clip shows and how it is said: six facts ("slots") a clip, each with words of its own.

No word belongs to two slots, so that reading a description is finding the word of the asked slot. The first value of
every slot is its *common* value, drawn with probability `COMMON_SHARE`: the language prior a careless model falls back
on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SLOTS: dict[str, tuple[str, ...]] = {
    "colour": ("red", "blue", "green", "yellow", "pink", "purple"),
    "shape": ("circle", "square", "triangle", "cross", "ring", "diamond"),
    "action": ("rests", "slides", "bounces", "drifts", "blinks", "pulses"),
    "pattern": ("plain", "striped", "barred", "dotted", "checked"),
    "place": ("meadow", "sea", "desert", "cave", "glacier", "city"),
    "landmark": ("tree", "house", "flag", "boat", "tower", "gate"),
}
"""The values of every slot; the first one is the common value."""

COMMON_SHARE = 0.35
"""Share of clips that show a slot's common value; the other values share the rest evenly."""

QUESTIONS = {
    "colour": "what colour is the object ?",
    "shape": "what shape is the object ?",
    "action": "what does the object do ?",
    "pattern": "what pattern has the ground ?",
    "place": "what place is this ?",
    "landmark": "what landmark is there ?",
}
_ANSWERS = {
    "colour": "the object is {} .",
    "shape": "the object is a {} .",
    "action": "the object {} .",
    "pattern": "the ground is {} .",
    "place": "this is a {} .",
    "landmark": "there is a {} .",
}
_CAPTION = "a {colour} {shape} {action} in a {pattern} {place} beside a {landmark} ."
_SLOT_OF = {value: slot for slot, values in SLOTS.items() for value in values}


@dataclass(frozen=True)
class Scene:
    """One clip's facts, and where things are (which no question asks for).

    `start` is the quadrant the object starts in and `corner` the landmark's (0 to 3, row by row); `texture` seeds the
    clip's brightness and noise.
    """

    facts: dict[str, str]
    start: int
    corner: int
    texture: int


def sample_scene(rng: np.random.Generator, common_share: float = COMMON_SHARE) -> Scene:
    """A scene; every slot is drawn on its own. `common_share` 0 stands for evenly distributed values."""
    facts = {slot: _sample_value(rng, values, common_share) for slot, values in SLOTS.items()}
    start = int(rng.integers(4))
    free = [quadrant for quadrant in range(4) if quadrant not in (start, partner(start, facts["action"]))]
    return Scene(facts, start, int(rng.choice(free)), int(rng.integers(2**31)))


def _sample_value(rng: np.random.Generator, values: tuple[str, ...], common_share: float) -> str:
    if common_share and rng.random() < common_share:
        return values[0]
    return str(rng.choice(values[1:] if common_share else values))


def partner(start: int, action: str) -> int:
    """The quadrant the object visits besides `start`."""
    return start ^ {"slides": 1, "bounces": 2, "drifts": 3}.get(action, 0)


def caption(facts: dict[str, str]) -> str:
    """The canonical description: all slots in a fixed order."""
    return _CAPTION.format(**facts)


def claim(slot: str, value: str) -> str:
    """One sentence that states a slot's value; the answer to the slot's question."""
    return _ANSWERS[slot].format(value)


def stated(text: str) -> dict[str, list[str]]:
    """The slot values that `text` names, by slot, in order of appearance."""
    found: dict[str, list[str]] = {}
    for word in text.lower().replace(".", " ").split():
        if word in _SLOT_OF:
            found.setdefault(_SLOT_OF[word], []).append(word)
    return found


def is_right(text: str, slot: str, facts: dict[str, str]) -> bool:
    """Whether `text` states the true value of `slot` and no other value of it."""
    return set(stated(text).get(slot, ())) == {facts[slot]}


def false_claims(text: str, facts: dict[str, str]) -> int:
    """How many of the values that `text` names are not what the clip shows."""
    return sum(value != facts[slot] for slot, values in stated(text).items() for value in values)
