"""From a policy's tokens to what an engine answers, for the engines that run a policy themselves."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from isr_dpo.engines import Text
from isr_dpo.errors import ModelError

TOO_LONG = "too_long"
"""How a request ends whose prompt does not fit the context."""


class Labels(NamedTuple):
    """What stands before a label, and the one token by which each label goes on from it."""

    cue: list[int]
    labels: tuple[int, int]


class Tokens:
    """A policy's tokenizer, and the tokens that end its texts."""

    def __init__(self, tokenizer: Any, ends: Collection[int]) -> None:
        self._tokenizer, self._ends = tokenizer, frozenset(ends)
        self._special = frozenset(tokenizer.all_special_ids)

    def text(self, ids: Sequence[int]) -> Text:
        """New ids of a draw, up to the end of the text, where one is among them."""
        end = self._end(ids)
        text = self._tokenizer.decode(ids[:end], skip_special_tokens=True).strip()
        return Text(text=text, tokens=len(ids[:end]), finish="length" if end is None else "stop")

    def rationale(self, ids: Sequence[int], cue: str) -> list[int]:
        """New ids before the end of the text or the cue. A media placeholder in them would ask for pixels."""
        kept = [token for token in ids[: self._end(ids)] if token not in self._special]
        while cue and cue in self.decode(kept):
            kept.pop()
        return kept

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def labels(self, cue: str, labels: tuple[str, str]) -> Labels:
        """How the tokenizer splits `cue label`. Raises ModelError: not into one token a label after the same cue."""
        first, second = (self._tokenizer.encode(f"{cue} {label}".strip(), add_special_tokens=False) for label in labels)
        if len(first) != len(second) or first[:-1] != second[:-1] or first[-1] == second[-1]:
            raise ModelError(f"judge: labels {labels} are not single tokens after the cue {cue!r} in this tokenizer")
        return Labels(first[:-1], (first[-1], second[-1]))

    def _end(self, ids: Sequence[int]) -> int | None:
        return next((number for number, token in enumerate(ids) if token in self._ends), None)
