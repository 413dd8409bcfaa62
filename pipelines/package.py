"""The pipeline package: the file that `kfp run create -f`, or an upload, takes."""

from pathlib import Path

from isr_dpo.config import Recipe
from isr_dpo.errors import RecipeError

MAX_BYTES = 1_000_000
"""Kubernetes refuses objects above 1.5 MB, and the workflow that a backend makes of a package is larger than that."""


def write(recipe: Recipe, output: Path) -> None:
    """Compiles the pipeline of `recipe` into the YAML file `output`.

    Raises:
        RecipeError: the package would be larger than a cluster takes, or `output` cannot be written.
    """
    from kfp import compiler

    from pipelines.isr_dpo import build

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        compiler.Compiler().compile(build(recipe), str(output))
    except OSError as error:
        raise RecipeError(f"{output}: cannot be written: {error.strerror}") from error
    size = output.stat().st_size
    if size > MAX_BYTES:
        output.unlink()
        raise RecipeError(
            f"iterations = {recipe.iterations}: the package has {size} bytes, a cluster takes {MAX_BYTES}; "
            "fewer iterations, or run it on one machine: python -m pipelines run"
        )
