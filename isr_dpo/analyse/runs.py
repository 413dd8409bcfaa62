"""A run's files, as the analyses read them. What is not complete is None; what differs from its manifest is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from isr_dpo import config, layout
from isr_dpo.analyse.estimate import Estimate, mean
from isr_dpo.config import Recipe
from isr_dpo.errors import DataError
from isr_dpo.evaluate import open_protocol
from isr_dpo.manifest import Manifest, files, find
from isr_dpo.records import Context, Grade, Judged, Prediction, Preference, Question, Row, TestRow, read_files
from isr_dpo.stores import Missing, join, read_bytes

RULES = "rule-based"
"""The name of the packaged grader, which asks no model."""
R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class GraderInfo:
    """Who graded, and how: figures are comparable where these are equal."""

    name: str
    model: str | None
    protocol: str
    prompt_digest: str | None = None
    """sha256; None where no model was asked."""
    reading: str = "strict"

    @property
    def label(self) -> str:
        """Stands beside every figure of its making."""
        name = "rule-based grader (no model)" if self.name == RULES else (self.model or self.name)
        return name if self.reading == "strict" else f"{name}, {self.reading} reading"

    @property
    def words(self) -> str:
        """All of it, for a message about two that differ."""
        prompt = f", prompt {self.prompt_digest[:8]}" if self.prompt_digest else ""
        return f"{self.label} by the {self.protocol} protocol{prompt}"


@dataclass(frozen=True)
class Graded:
    """A policy's graded answers to one set."""

    grader: GraderInfo
    grades: tuple[Grade, ...]

    @property
    def scored(self) -> list[Grade]:
        return [grade for grade in self.grades if grade.status == "scored"]

    @property
    def unscored(self) -> int:
        return len(self.grades) - len(self.scored)

    @property
    def accuracy(self) -> Estimate | None:
        """A share; None where nothing is scored."""
        scored = self.scored
        return mean([float(bool(g.correct)) for g in scored], [g.video for g in scored], within=(0.0, 1.0))

    @property
    def score(self) -> Estimate | None:
        """In the protocol's points; None where nothing is scored."""
        scored, points = self.scored, open_protocol(self.grader.protocol).score_range
        return mean([g.score or 0.0 for g in scored], [g.video for g in scored], within=points)


@dataclass(frozen=True)
class Run:
    """A run that stands at `uri`; `name` is unique among the runs opened together.

    Every method raises CorruptOutput where a file differs from its manifest.
    """

    uri: str
    recipe: Recipe
    name: str

    @property
    def policies(self) -> range:
        """Indices of the policies to show: policy-00, the start, where nothing is trained."""
        return range(0 if self.recipe.iterations == 0 else 1, self.recipe.iterations + 1)

    @property
    def rounds(self) -> range:
        """Rounds with preferences of their own; round 0 is the seed DPO."""
        return range(1, self.recipe.iterations)

    def preferences(self, index: int) -> list[Preference] | None:
        """D_t^pref of round `index`; of round 0 the seed preferences."""
        if index == 0:
            return self._rows(layout.dataset(self.uri), "seed-", Preference)
        return self._rows(layout.round_output(self.uri, index, "preferences"), "part-", Preference)

    def judged(self, index: int) -> list[Judged] | None:
        return self._rows(layout.round_output(self.uri, index, "preferences"), "judged-", Judged)

    def contexts(self, index: int) -> list[Context] | None:
        return self._rows(layout.round_output(self.uri, index, "contexts"), "part-", Context)

    def predictions(self, policy: int, name: str) -> list[Prediction] | None:
        """Answers of a policy to the set `name`."""
        return self._rows(self.answers_uri(policy, name), "part-", Prediction)

    def graded(self, policy: int, name: str) -> Graded | None:
        """Grades of a policy's answers to the set `name`, by the protocol that the recipe has for it."""
        made = find(layout.graded(self.uri, policy, self.recipe.protocol(name), name))
        if made is None:
            return None
        tree = json.loads((files(made, {"protocol.json"}) / "protocol.json").read_bytes())
        grader = GraderInfo(
            name=tree["grader"],
            model=tree["model"],
            protocol=tree["protocol"],
            prompt_digest=tree["prompt_digest"],
            reading=tree.get("reading") or "strict",
        )
        return Graded(grader, tuple(_read(made, "part-", Grade)))

    def test_rows(self, name: str) -> list[TestRow]:
        """Questions of the set `name`, with their ground truth.

        Raises:
            DataError: the run has no such set, or is not prepared yet.
        """
        if name not in self.recipe.data.sets:
            known = ", ".join(sorted(self.recipe.data.sets)) or "none"
            raise DataError(f"{self.uri}: no evaluation set {name!r}; its sets: {known}")
        rows = self._rows(layout.dataset(self.uri), f"set-{name}.jsonl", TestRow)
        if rows is None:
            raise DataError(f"{self.uri}: its dataset is not complete yet")
        return rows

    def questions(self) -> list[Question]:
        """The training rows; none where the run is not prepared yet."""
        return self._rows(layout.dataset(self.uri), "train-", Question) or []

    def set_digest(self, name: str) -> str | None:
        """sha256 of the set's rows: equal where two runs were asked the same; None where there are none."""
        made = find(layout.dataset(self.uri))
        file = made.files.get(f"set-{name}.jsonl") if made is not None else None
        return file.sha256 if file is not None else None

    def answers_uri(self, policy: int, name: str) -> str:
        return join(layout.answers(self.uri, policy), name)

    def digest(self, uri: str) -> str:
        """Of the complete output at `uri`, for `made_from`."""
        made = find(uri)
        return made.digest if made is not None else ""

    def _rows(self, uri: str, prefix: str, row_type: type[R]) -> list[R] | None:
        made = find(uri)
        return None if made is None else _read(made, prefix, row_type)


def open_runs(uris: Sequence[str]) -> list[Run]:
    """The runs at `uris`, each named by its recipe; those of one name by their folder too.

    Raises:
        DataError: there is no run, or the same one twice.
    """
    uris = [uri.rstrip("/") for uri in uris]
    twice = [uri for uri, times in Counter(uris).items() if times > 1]
    if twice:
        raise DataError(f"{twice[0]}: named twice")
    recipes = [_recipe(uri) for uri in uris]
    times = Counter(recipe.name for recipe in recipes)
    return [
        Run(uri, recipe, recipe.name if times[recipe.name] == 1 else f"{recipe.name} ({uri.rpartition('/')[2]})")
        for uri, recipe in zip(uris, recipes, strict=True)
    ]


def open_run(uri: str) -> Run:
    """The run at `uri`. Raises DataError: there is none."""
    return open_runs([uri])[0]


def _recipe(uri: str) -> Recipe:
    try:
        tree = json.loads(read_bytes(layout.run_file(uri)))
    except Missing:
        raise DataError(f"{uri}: no run.json there, so no run") from None
    return config.parse(json.dumps(tree["recipe"]), where=layout.run_file(uri))


def _read(made: Manifest, prefix: str, row_type: type[R]) -> list[R]:
    names = {name for name in made.files if name.startswith(prefix)}
    return read_files(files(made, names), names, row_type)
