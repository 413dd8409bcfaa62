"""The steps around evaluate: answer, register, report."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Sequence

from isr_dpo import answer, layout, manifest, prompts
from isr_dpo.config import Recipe
from isr_dpo.errors import RecipeError
from isr_dpo.manifest import Manifest
from isr_dpo.outputs import Output
from isr_dpo.parts import WHOLE, Share
from isr_dpo.progress import Progress
from isr_dpo.records import Prediction
from isr_dpo.steps.common import (
    Inputs,
    StepResult,
    begin,
    bundle,
    members,
    metrics_of,
    reused,
    test_rows,
)
from isr_dpo.steps.engine import Engines, closed
from isr_dpo.steps.imported import import_answers
from isr_dpo.stores import join, read_bytes

log = logging.getLogger("isr_dpo")


def answer_step(recipe: Recipe, inputs: Inputs, run_uri: str, index: int, *, share: Share = WHOLE) -> StepResult:
    """Greedy answers to the dev set, and to all sets where evaluate.full_at says so: answers/policy-pp/<set>. A
    benchmark's are to all sets, or imported."""
    if recipe.answer.predictions:
        return import_answers(recipe, inputs, run_uri, index)
    with Engines(recipe, inputs, run_uri) as engines:
        return answer_sets(recipe, inputs, engines, run_uri, index, recipe.sets_at(index), share=share)


def answer_sets(
    recipe: Recipe, inputs: Inputs, engines: Engines, run_uri: str, index: int, names: Sequence[str], *, share: Share
) -> StepResult:
    """Greedy answers to the sets `names`, in a session of engines that may have other work too."""
    uri = layout.answers(run_uri, index)
    standing = {name: begin(recipe, "answers", "answer", inputs, join(uri, name)) for name in names}
    done = {name: reused(out).manifest for name, out in standing.items() if isinstance(out, Manifest)}
    metrics: dict[str, float] = {}
    todo = {name: out for name, out in standing.items() if isinstance(out, Output)}
    for name, out in todo.items():
        done[name] = _answer_set(recipe, inputs, engines, out, name, index, share)
    for name, made in sorted(done.items()):
        metrics |= {f"{name}/{key}": value for key, value in metrics_of(made).items()}
    return StepResult(bundle("answers", "answer", uri, done), metrics, reused=not todo)


def register_step(recipe: Recipe, inputs: Inputs, run_uri: str, index: int) -> StepResult:
    """Makes the policy a version of the registered model; the run's best by dev accuracy becomes `challenger`."""
    from isr_dpo import registry, tracking

    if recipe.is_benchmark:
        raise RecipeError(f"{recipe.name} is a benchmark (iterations: 0): it has trained no policy to register")
    policy, dataset = inputs["policy"], manifest.find(layout.dataset(run_uri))
    assert dataset is not None
    dev_set = recipe.evaluate.dev
    dev = members(inputs["evaluation"]).get(layout.graded_name(recipe.protocol(dev_set), dev_set))
    metrics = metrics_of(dev) if dev is not None else {}
    candidate = registry.Candidate(
        run_uri=run_uri,
        index=index,
        uri=policy.uri,
        digest=policy.digest,
        dataset_digest=dataset.digest,
        dev_digest=dataset.files[f"set-{dev_set}.jsonl"].sha256,
        grader=_grader_name(dev),
        dev_accuracy=metrics.get("accuracy"),
        metrics=metrics,
        code_version=policy.code_version,
    )
    made = registry.register(recipe, candidate, tracking_run_id=tracking.parent_id(recipe, run_uri=run_uri))
    best = ", the best of this run so far: challenger" if made.best else ""
    log.info("%s is version %s of %s%s", layout.policy_name(index), made.version, made.name, best)
    return StepResult(policy, {"version": float(made.version), "best": float(made.best)}, reused=False)


def report_step(recipe: Recipe, inputs: Inputs, run_uri: str, index: int) -> StepResult:
    """Rebuilds <run>/report/index.html from the run's files; a page that would say the same stands as it is."""
    from isr_dpo import report

    before = report.standing(layout.report(run_uri))
    uri = report.build(run_uri, recipe)
    page = read_bytes(uri)
    log.info("report: %s", uri)
    return StepResult(inputs["assessed"], {}, reused=page == before, page=page.decode())


def _answer_set(
    recipe: Recipe, inputs: Inputs, engines: Engines, out: Output, name: str, index: int, share: Share
) -> Manifest:
    rows = test_rows(inputs["dataset"], name)
    stage = functools.partial(answer.answer, template=prompts.load(recipe.prompts).answer, settings=recipe.answer)
    progress = Progress(f"answer, policy {index}, {name}", len(rows), "questions")
    made = engines.work(rows, out, row_type=Prediction, stage=stage, progress=progress, share=share)
    return closed(out, answer.metrics(made), rows=len(made), share=share).manifest


def _grader_name(evaluation: Manifest | None) -> str:
    """Who graded, as protocol.json says, with all that makes accuracies comparable: `rule-based`,
    `gpt-4o-mini, prompt 5f1d2c3b`."""
    if evaluation is None:
        return ""
    tree = json.loads((manifest.files(evaluation, {"protocol.json"}) / "protocol.json").read_bytes())
    words = [" ".join(dict.fromkeys(str(tree[key]) for key in ("grader", "model") if tree[key]))]
    words += [f"{tree['protocol']} protocol"] if tree["protocol"] != "caption" else []
    words += [f"prompt {tree['prompt_digest'][:8]}"] if tree["prompt_digest"] else []
    words += [f"{tree['reading']} reading"] if tree["reading"] != "strict" else []
    return ", ".join(words)
