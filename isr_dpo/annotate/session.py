"""One annotator's labelling of one round: what the page asks for, without HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from isr_dpo import layout, manifest
from isr_dpo.annotate.choices import Choice, ChoiceLog, Outcome
from isr_dpo.annotate.footage import Footage
from isr_dpo.annotate.sheet import Item, rows_digest, sheet
from isr_dpo.errors import DataError
from isr_dpo.records import Judged, read_files

Verdict = Literal["first", "second", "tie", "unclear"]
"""What can be said of two answers, by their places on the page."""
VERDICTS: tuple[str, ...] = get_args(Verdict)
_LONGEST_SECONDS = 86400.0


class Refusal(ValueError):
    """A request that names no row of the sheet, or says nothing that can be said."""


@dataclass(frozen=True)
class Session:
    """The rows to label, where choices go, and the frames."""

    items: Sequence[Item]
    log: ChoiceLog
    footage: Footage
    round: int
    annotator: str
    rows_digest: str

    def state(self) -> dict[str, Any]:
        """What is labelled so far, by place in the sheet."""
        standing = self.standing()
        labelled = [self._verdict(item, standing.get(item.id)) for item in self.items]
        return {"annotator": self.annotator, "round": self.round, "labelled": labelled}

    def item(self, number: int) -> dict[str, Any]:
        """A row as the page shows it. Raises Refusal: there is no such row."""
        item = self._item(number)
        return {
            "id": item.id,
            "video": item.video,
            "question": item.question,
            "answers": item.answers,
            "frames": self.frame_count(number),
        }

    def frame_count(self, number: int) -> int:
        return len(self.footage.images(self._item(number).video))

    def frame(self, number: int, frame: int) -> bytes:
        """An image of the row's video. Raises Refusal: there is no such frame."""
        images = self.footage.images(self._item(number).video)
        if not 0 <= frame < len(images):
            raise Refusal(f"no frame {frame} among {len(images)}")
        return images[frame]

    def choose(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """Keeps a choice {id, verdict, seconds} and returns the new state. Raises Refusal."""
        item = next((item for item in self.items if item.id == tree.get("id")), None)
        if item is None:
            raise Refusal(f"no row {tree.get('id')!r} is being labelled")
        verdict, seconds = tree.get("verdict"), tree.get("seconds")
        if verdict not in VERDICTS:
            raise Refusal(f"verdict {verdict!r}: accepted: {', '.join(VERDICTS)}")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= _LONGEST_SECONDS:
            raise Refusal(f"seconds {seconds!r}: accepted: 0 to {_LONGEST_SECONDS:.0f}")
        self.log.add(
            Choice(
                id=item.id,
                video=item.video,
                round=self.round,
                annotator=self.annotator,
                shown_first=item.shown_first,
                choice=item.response(("first", "second").index(verdict)) if verdict in ("first", "second") else None,
                outcome="preferred" if verdict in ("first", "second") else cast("Outcome", verdict),
                seconds=round(float(seconds), 2),
                rows_digest=self.rows_digest,
            )
        )
        return self.state()

    def standing(self) -> dict[str, Choice]:
        """The choices made between these very rows, by id."""
        return {i: choice for i, choice in self.log.standing.items() if choice.rows_digest == self.rows_digest}

    def _item(self, number: int) -> Item:
        if not 0 <= number < len(self.items):
            raise Refusal(f"no row {number} among {len(self.items)}")
        return self.items[number]

    @staticmethod
    def _verdict(item: Item, choice: Choice | None) -> str | None:
        if choice is None or choice.choice is None:
            return choice.outcome if choice else None
        return "first" if item.response(0) == choice.choice else "second"


def open_session(run_uri: str, *, round_index: int, rows: int, seed: int, annotator: str) -> Session:
    """The session of `annotator` over a round, going on from what is labelled.

    Raises:
        DataError: the round is not judged, or has no row with two different answers.
    """
    judged = read_judged(run_uri, round_index)
    items = sheet(judged, rows=rows, seed=seed, annotator=annotator)
    if not items:
        raise DataError(f"round {round_index} of {run_uri}: none of its {len(judged)} rows has two different answers")
    log = ChoiceLog(layout.choices(run_uri, round_index, annotator))
    return Session(items, log, Footage(run_uri), round_index, annotator, rows_digest(judged))


def read_judged(run_uri: str, round_index: int) -> list[Judged]:
    """The judged rows of a round. Raises DataError: it is not judged (yet)."""
    uri = layout.round_output(run_uri, round_index, "preferences")
    made = manifest.find(uri)
    if made is None:
        raise DataError(f"{uri}: not there, so round {round_index} is not judged; is RUN the run's URI?")
    names = [name for name in made.files if name.startswith("judged-")]
    return read_files(manifest.files(made, names), names, Judged)
