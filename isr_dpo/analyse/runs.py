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
    served_models: tuple[str, ...] = ()
    """What the endpoint said it served for `model`, sorted."""
    reading: str = "strict"

    @property
    def label(self) -> str:
        """Stands beside every figure of its making."""
        name = "rule-based grader (no model)" if self.name == RULES else (self.model or self.name)
        return name if self.reading == "strict" else f"{name}, {self.reading} reading"

    @property
    def words(self) -> str:
        """All of it, for a message about two that differ."""
        served = f", served as {' and '.join(self.served_models)}" if self.served_models else ""
        prompt = f", prompt {self.prompt_digest[:8]}" if self.prompt_digest else ""
        return f"{self.label} by the {self.protocol} protocol{served}{prompt}"


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
        """A share of the answers that the reading has a verdict for; None where there is none."""
        right = [(float(g.correct), g.video) for g in self.grades if g.correct is not None]
        return mean([value for value, _ in right], [video for _, video in right], within=(0.0, 1.0))

    @property
    def score(self) -> Estimate | None:
        """In the protocol's points, of the answers that the reading has points for; None where there is none."""
        points = [(g.score, g.video) for g in self.grades if g.score is not None]
        low, high = open_protocol(self.grader.protocol).score_range
        values = [value for value, _ in points]
        within = (min(low, *values), max(high, *values)) if values else None  # the compat reading knows no bounds
        return mean(values, [video for _, video in points], within=within)


@dataclass(frozen=True)
class Run:
    """A run that stands at `uri`; `name` is unique among the runs opened together.

    Every method raises CorruptOutput where a file differs from its manifest.
    """

    uri: str
    recipe: Recipe
    name: str

    @property
    def folder(self) -> str:
        """The last part of the URI."""
        return self.uri.rpartition("/")[2]

    @property
    def context(self) -> str:
        """The context design; `none` is self-rewarding, empty: a benchmark, which trains nothing."""
        return "" if self.recipe.is_benchmark else self.recipe.retrospect.context

    def system(self, policy: int) -> str:
        """A policy of this run, in words; a benchmark has one, so its own name says it."""
        return self.name if self.recipe.is_benchmark else f"{self.name}, {layout.policy_name(policy)}"

    @property
    def policies(self) -> range:
        """Indices of the policies to show."""
        return self.recipe.policies

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

    def answered(self, name: str) -> list[int]:
        """Policies whose answers to the set `name` are complete."""
        return [policy for policy in self.policies if find(self.answers_uri(policy, name)) is not None]

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
            served_models=tuple(tree.get("served_models", ())),
            reading=tree.get("reading", "strict"),
        )
        return Graded(grader, tuple(_read(made, "part-", Grade)))

    def test_rows(self, name: str) -> list[TestRow]:
        """Questions of the set `name`, with their ground truth.

        Raises:
            DataError: the run has no such set, did not read it, or is not prepared yet.
        """
        if name not in self.recipe.data.sets:
            known = ", ".join(sorted(self.recipe.data.sets)) or "none"
            raise DataError(f"{self.uri}: no evaluation set {name!r}; its sets: {known}")
        rows = self._rows(layout.dataset(self.uri), f"set-{name}.jsonl", TestRow)
        if not rows:
            raise DataError(f"{self.uri}: its dataset is not complete yet, or is without the set {name!r}")
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
    """The runs at `uris`, each named by its recipe; where that is no name, by their folder or whole URI too.

    Raises:
        DataError: there is no run, or the same one twice.
    """
    uris = [uri.rstrip("/") for uri in uris]
    twice = [uri for uri, times in Counter(uris).items() if times > 1]
    if twice:
        raise DataError(f"{twice[0]}: named twice")
    recipes = [_recipe(uri) for uri in uris]
    names = [recipe.name for recipe in recipes]
    for more in ([uri.rpartition("/")[2] for uri in uris], uris):
        times = Counter(names)
        names = [
            name if times[name] == 1 else f"{recipe.name} ({extra})"
            for name, recipe, extra in zip(names, recipes, more, strict=True)
        ]
    return [Run(uri, recipe, name) for uri, recipe, name in zip(uris, recipes, names, strict=True)]


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
