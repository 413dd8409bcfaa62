"""The JSONL rows that travel between steps.

Training and preference rows are LLaVA-Hound's flat schema, evaluation rows and predictions the published test layout
(reference: ShareGPTVideo on Hugging Face, [C]); what we add are extra keys at the end, so that existing scripts read
our files. A row type knows its own required keys; reading names file and line of a row that lacks one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from isr_dpo.errors import DataError

NOT_ASKED: Mapping[str, str] = {
    "too_long": "the prompt does not fit the model's context",
    "refused": "the model's server refuses to answer this",
}
"""Why a model gave no text at all, by the word that rows and metrics have for it."""


class Row(BaseModel):
    """A frozen row; keys beyond the declared ones are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Identified(Row):
    """A row as others publish it: `id` may be a number, or stand as `idx` [C], which is kept."""

    id: str

    @model_validator(mode="before")
    @classmethod
    def _identified(cls, tree: Any) -> Any:
        if isinstance(tree, dict):
            name = tree.get("id", tree.get("idx"))
            if isinstance(name, int) and not isinstance(name, bool):
                name = str(name)
            return tree if name is None else {**tree, "id": name}
        return tree


class Published(Identified):
    """A published row about a video."""

    video: str


class Question(Row):
    """A training row as the loop sees it: no ground truth."""

    id: str
    video: str
    prompt: str


class Preference(Row):
    """A pair for DPO, in the published schema. `answer` (ground truth) stays empty: the loop does not read it.

    `chosen_score` and `rejected_score` are the judge's probabilities of the two responses, averaged over the orders.
    """

    id: str
    video: str
    prompt: str
    answer: str = ""
    chosen: str
    rejected: str
    chosen_score: float | None = None
    rejected_score: float | None = None


class Responses(Row):
    """Two draws for a question (y1, y2)."""

    id: str
    video: str
    prompt: str
    responses: tuple[str, str]
    finish: tuple[str, str]
    """How each ended: `stop`, `length` (cut at the token limit), or a reason of `NOT_ASKED`; the text is empty then."""
    seeds: tuple[int, int]


class Context(Row):
    """c_t of a video; `previous` is c_(t-1), absent in round 1 and for `renew`.

    `reason`, of `NOT_ASKED`, says why the model wrote none; the previous one stands then, or an empty one in round 1.
    """

    video: str
    context: str
    previous: str | None = None
    reason: str | None = None


class Judged(Row):
    """What the judge said about one row; the preference or the reason why there is none.

    `probabilities` holds, for each order asked, the unnormalised probabilities of "the first response is better" and
    "the second is", already mapped back to the responses' own order: [[p1, p2], [p1, p2]].
    """

    id: str
    video: str
    prompt: str
    responses: tuple[str, str]
    probabilities: tuple[tuple[float, float], ...] = ()
    rationales: tuple[str, ...] = ()
    outcome: Literal[
        "preferred", "identical", "empty", "hostile", "too_long", "refused", "tie", "inconsistent", "unparsed"
    ]
    winner: Literal[0, 1] | None = None
    context: str | None = None


class Turn(Row):
    """One turn of a published conversation; the key is `from`."""

    speaker: str = Field(alias="from")
    value: str


class TestRow(Published):
    """A row of a published `<set>.qa.jsonl` or `<set>.qa.official.jsonl`: a human turn with `<video>`, a gpt turn with
    the ground truth."""

    __test__ = False

    conversations: tuple[Turn, Turn]
    caption: str | None = None
    """Ground-truth caption, which the caption protocol needs."""

    @property
    def question(self) -> str:
        return self.conversations[0].value.replace("<video>", "").strip()

    @property
    def answer(self) -> str:
        return self.conversations[1].value


class Outcome(Row):
    """Of a prediction: `success`, or `failed` with the reason as message."""

    status: Literal["success", "failed"]
    message: str

    @field_validator("status", mode="before")
    @classmethod
    def _failed(cls, status: Any) -> Any:
        """The public scripts write `error`, and count whatever is not a success as a failure [C]."""
        return "failed" if isinstance(status, str) and status != "success" else status


class Prediction(Identified):
    """An answer in the published layout of prediction files."""

    modal_path: str
    query: str
    answer: str
    """The ground truth."""
    model_prediction: Outcome

    @model_validator(mode="before")
    @classmethod
    def _placed(cls, tree: Any) -> Any:
        """LLaVA-Hound's runners of other systems write `video_path` [C], which is kept."""
        if isinstance(tree, dict) and "modal_path" not in tree and "video_path" in tree:
            return {**tree, "modal_path": tree["video_path"]}
        return tree


UNSCORED: Mapping[str, str] = {
    "no_answer": "the policy gave no answer",
    "no_reply": "the grader gave no reply",
    "unreadable": "the grader's reply is not in the asked form",
}
"""Why an answer has no score, by the word that rows and metrics (`unscored_<reason>`) have for it."""


class Grade(Row):
    """What the grader made of one prediction, with all that an audit needs. Unscored is never wrong."""

    id: str
    video: str
    score: float | None = None
    correct: bool | None = None
    """Where scored both are there. Read by `compat`, an unscored answer may have one of the two: the public scripts
    count it in that figure alone."""
    words: int
    """Of the prediction."""
    status: Literal["scored", "unscored"]
    reason: Literal["no_answer", "no_reply", "unreadable"] | None = None
    """Of an unscored answer."""
    reply: str
    """The grader's own words, or why there are none."""
    model: str | None = None
    """As served."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    """Of the reply, when it was bought."""
    bought: bool = False
    """Paid for by this evaluation, not found in the ledger."""
    key: str | None = None
    """Of the ledger."""


R = TypeVar("R", bound=Row)


def read_rows(lines: Iterable[str], row_type: type[R], *, where: str) -> Iterator[R]:
    """Rows of a JSONL text; `where` names the file in messages.

    Raises:
        DataError: invalid JSON, a missing key or a value of the wrong type, with file and line.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield row_type.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            what = f"{key}: {first['msg']}" if key else str(first["msg"])
            raise DataError(f"{where}:{number}: not a {row_type.__name__} row: {what}: {line.strip()[:120]}") from error


def read_files(folder: Path, names: Iterable[str], row_type: type[R]) -> list[R]:
    """Rows of the named files of a folder, in name order."""
    rows: list[R] = []
    for name in sorted(names):
        with (folder / name).open(encoding="utf-8") as lines:
            rows += read_rows(lines, row_type, where=str(folder / name))
    return rows


def to_jsonl(rows: Iterable[Row | Mapping[str, Any]]) -> bytes:
    """Rows as JSONL; absent optional values are left out, keys of others and non-ASCII text stand as they are."""
    trees = (_tree(row) if isinstance(row, Row) else row for row in rows)
    return "".join(json.dumps(tree, ensure_ascii=False) + "\n" for tree in trees).encode()


def _tree(row: Row) -> dict[str, Any]:
    extra = row.model_extra or {}
    dumped = row.model_dump(mode="json", by_alias=True)
    return {key: value for key, value in dumped.items() if value is not None or key in extra}


def part_name(number: int, prefix: str = "part") -> str:
    """`part-00003.jsonl`."""
    return f"{prefix}-{number:05d}.jsonl"


def seed_for(seed: int, *what: str | int) -> int:
    """A 63-bit seed from the run's seed and (stage, round, row id, draw): the same wherever and in whatever order rows
    are worked on."""
    text = json.dumps([seed, *what], ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
