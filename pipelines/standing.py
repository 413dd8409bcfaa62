"""Whether a run stands complete: asked before anything is started, so that a finished run is not run again."""

import json
import os
from collections.abc import Iterator

from isr_dpo import layout, prompts
from isr_dpo.config import Recipe
from isr_dpo.digests import code_version
from isr_dpo.manifest import find, verify
from isr_dpo.outputs import STRICT_CODE
from isr_dpo.steps.evaluate import grading_digest
from isr_dpo.stores import Missing, join, read_bytes, write_bytes


def mark_complete(run_uri: str, recipe: Recipe) -> None:
    """Records that every task of `recipe` has succeeded, those that leave no output among them."""
    write_bytes(_mark(run_uri), (json.dumps({"recipe_digest": recipe.digest()}) + "\n").encode())


def is_complete(run_uri: str, recipe: Recipe) -> bool:
    """Whether `recipe` has run to its end at `run_uri` and all its outputs are as their manifests say.

    Raises:
        CorruptOutput: a file is missing or differs.
    """
    try:
        mark = json.loads(read_bytes(_mark(run_uri)))
        read_bytes(layout.report(run_uri))
    except Missing:
        return False
    standing = [find(uri) for uri in expected(run_uri, recipe)]
    made = [manifest for manifest in standing if manifest is not None]
    current = {"", prompts.load(recipe.prompts).digest, *(grading_digest(recipe, name) for name in recipe.data.sets)}
    if mark["recipe_digest"] != recipe.digest() or len(made) < len(standing):
        return False
    if any(manifest.prompts_digest not in current for manifest in made):
        return False
    if os.environ.get(STRICT_CODE) and any(manifest.code_version != code_version() for manifest in made):
        return False
    for manifest in made:
        verify(manifest)
    return True


def expected(run_uri: str, recipe: Recipe) -> Iterator[str]:
    """The directories of all outputs that `recipe` makes."""
    if not recipe.answer.predictions:
        yield layout.frames(run_uri)
    yield layout.dataset(run_uri)
    yield layout.policy(run_uri, 0)
    for policy in recipe.policies:
        if policy > 0:
            yield layout.policy(run_uri, policy)
        for name in recipe.sets_at(policy):
            yield join(layout.answers(run_uri, policy), name)
            yield layout.graded(run_uri, policy, recipe.protocol(name), name)
    design = recipe.retrospect.context
    for index in range(1, recipe.iterations):
        yield layout.round_output(run_uri, index, "responses")
        yield layout.round_output(run_uri, index, "preferences")
        yield layout.round_output(run_uri, index, "training")
        if design != "none" and (design != "fixed" or index == 1):
            yield layout.round_output(run_uri, index, "contexts")


def _mark(run_uri: str) -> str:
    return join(run_uri, "complete.json")
