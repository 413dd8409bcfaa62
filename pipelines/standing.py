"""Which outputs of a run stand complete: asked before anything is started, so that a finished run is not run again."""

import json
from collections.abc import Iterator

from isr_dpo import layout, prompts
from isr_dpo.config import Recipe
from isr_dpo.manifest import find, verify
from isr_dpo.stores import Missing, join, read_bytes


def is_complete(run_uri: str, recipe: Recipe) -> bool:
    """Whether `recipe` has run to its end at `run_uri` and all its outputs are as their manifests say.

    Raises:
        CorruptOutput: a file is missing or differs.
    """
    try:
        run = json.loads(read_bytes(layout.run_file(run_uri)))
        read_bytes(layout.tracked(run_uri, "report", recipe.iterations))
        read_bytes(layout.report(run_uri))
    except Missing:
        return False
    if run.get("digest") != recipe.digest():
        return False
    standing = [find(uri) for uri in expected(run_uri, recipe)]
    made = [manifest for manifest in standing if manifest is not None]
    if len(made) < len(standing) or {m.prompts_digest for m in made} - {"", prompts.load(recipe.prompts).digest}:
        return False
    for manifest in made:
        verify(manifest)
    return True


def expected(run_uri: str, recipe: Recipe) -> Iterator[str]:
    """The directories of all outputs that `recipe` makes."""
    yield layout.frames(run_uri)
    yield layout.dataset(run_uri)
    yield layout.policy(run_uri, 0)
    for policy in range(1, recipe.iterations + 1):
        yield layout.policy(run_uri, policy)
        sets = recipe.data.sets if policy in recipe.evaluate.full_at else [recipe.evaluate.dev]
        for name in sets:
            yield join(layout.answers(run_uri, policy), name)
            yield join(layout.evaluation(run_uri, policy), f"caption-{name}")
    for index in range(1, recipe.iterations):
        yield layout.round_output(run_uri, index, "responses")
        yield layout.round_output(run_uri, index, "preferences")
        yield layout.round_output(run_uri, index, "training")
        if recipe.retrospect.context != "none" and not (recipe.retrospect.context == "fixed" and index > 1):
            yield layout.round_output(run_uri, index, "contexts")
