"""Evaluations that make two policies comparable, as commands: answers that stand, graded again by the candidate's
grader, or the model asked again.

Such an evaluation is a run of its own beside the candidate's, so that it finds the ledger of bought grades. Its URI
follows from what it does: whoever looks for its grades later finds them there.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

from isr_dpo import config
from isr_dpo.analyse.runs import Run, open_run
from isr_dpo.config import Recipe
from isr_dpo.digests import canonical_digest
from isr_dpo.errors import DataError
from isr_dpo.layout import run_file
from isr_dpo.manifest import local_folder
from isr_dpo.stores import Missing, join, read_bytes


@dataclass(frozen=True)
class Submission:
    """`command` evaluates policy-00 of a benchmark at `run_uri` on `set`, on the machine where it is typed; `submit`
    does so on a cluster, None where its pods would not reach `run_uri`. `recipe` is what both make of the recipe they
    name."""

    what: str
    run_uri: str
    set: str
    recipe: Recipe
    command: str
    submit: str | None

    @property
    def lines(self) -> list[str]:
        """For whoever is to run it."""
        there = [] if self.submit is None else ["# or on a cluster, by its placement", self.submit]
        return [f"# {self.what}", self.command, *there]

    def run(self) -> Run | None:
        """The run that it has made; None: nobody has submitted it."""
        try:
            read_bytes(run_file(self.run_uri))
        except Missing:
            return None
        return open_run(self.run_uri)


def regraded(what: str, asked: Run, answers_uri: str, *, fresh: bool) -> Submission:
    """Answers that stand, graded as the dev set of run `asked` is. `fresh`: no grade is taken from the ledger that
    runs share."""
    dev = asked.recipe.evaluate.dev
    changes = ["model.start=null", f"answer.predictions={json.dumps({dev: answers_uri})}"]
    return _submission(f"grades the answers of {what} again", asked, asked, changes, model=None, fresh=fresh)


def answered(what: str, asked: Run, model: str, *, own: Run | None, fresh: bool) -> Submission:
    """The model at URI `model`, asked and graded on the dev set of run `asked`; `own`: the run that trained it, whose
    settings it answers with."""
    return _submission(f"asks {what} again", asked, own or asked, [], model=model, fresh=fresh)


def _submission(what: str, asked: Run, base: Run, changes: list[str], *, model: str | None, fresh: bool) -> Submission:
    dev = asked.recipe.evaluate.dev
    changes = [*_same_evaluation(asked.recipe, base.recipe), *changes]
    recipe = _recipe(base.recipe, changes, model)
    digest = canonical_digest([recipe.digest(), fresh])[:12]
    run_uri = _beside(asked.uri, f"comparable-{digest}")
    if fresh:
        changes.append(f"evaluate.ledger={json.dumps(join(run_uri, 'ledger'))}")
        recipe = _recipe(base.recipe, changes, model)
    asking = [] if model is None else ["--model", model]
    here = _command("evaluate", base, run_uri, *asking, changes=changes)
    there = _command("submit", base, run_uri, "--placement", "PLACEMENT", changes=_all_changes(changes, model))
    return Submission(what, run_uri, dev, recipe, here, there if local_folder(run_uri) is None else None)


def _command(name: str, base: Run, run_uri: str, *words: str, changes: list[str]) -> str:
    set_ = [word for change in changes for word in ("--set", change)]
    return shlex.join(["python", "-m", "pipelines", name, base.uri, "--run-uri", run_uri, *words, *set_])


def _recipe(base: Recipe, changes: list[str], model: str | None) -> Recipe:
    return config.parse(base.canonical(), changes=_all_changes(changes, model))


def _all_changes(changes: list[str], model: str | None) -> list[str]:
    """As `pipelines evaluate` makes them."""
    start = [] if model is None else [f"model.start={json.dumps(model)}"]
    return ["iterations=0", *changes, *start]


def _same_evaluation(asked: Recipe, base: Recipe) -> list[str]:
    """What makes a benchmark by recipe `base` ask the dev set of `asked` alone, and grade as that does."""
    dev = asked.evaluate.dev
    protocols = {dev: asked.protocol(dev)}
    changes = [f"data.sets={json.dumps({dev: asked.data.sets[dev]})}", f"evaluate.protocols={json.dumps(protocols)}"]
    if base.data.videos != asked.data.videos:
        changes.append(f"data.videos={json.dumps(asked.data.videos)}")
    ours, theirs = asked.evaluate.model_dump(mode="json"), base.evaluate.model_dump(mode="json")
    changes += [
        f"evaluate.{key}={json.dumps(value)}"
        for key, value in ours.items()
        if key != "protocols" and value != theirs[key]
    ]
    return changes


def _beside(run_uri: str, name: str) -> str:
    folder, _, _ = run_uri.rstrip("/").rpartition("/")
    if not folder:
        raise DataError(f"{run_uri}: no folder to put an evaluation beside it")
    return join(run_uri if folder.endswith(":/") else folder, name)
