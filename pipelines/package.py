"""The pipeline package: the file that `kfp run create -f`, or an upload, takes; or the same as Kubernetes objects."""

import json
import re
from pathlib import Path

from isr_dpo.config import Recipe
from isr_dpo.errors import RecipeError
from pipelines.placement import Placement

MAX_BYTES = 768 * 1024
"""Half of the 1.5 MiB that Kubernetes takes of an object: the workflow that a backend makes of a package is larger."""
MAX_PARAMETER_BYTES = 10_000
"""KFP's default limit for all parameters of a run together."""
_LONGEST_URI = 1000


def write(
    recipe: Recipe,
    output: Path,
    placement: Placement,
    *,
    run: str | None = None,
    as_objects: bool = False,
    namespace: str | None = None,
) -> None:
    """Compiles the pipeline of `recipe`, fitted to `placement`, into the YAML file `output`. `run` labels its pods.
    `as_objects`: a Pipeline and its PipelineVersion, in `namespace`, for `kubectl apply` where KFP keeps pipelines as
    objects.

    Raises:
        RecipeError: recipe or package are larger than a cluster takes, or `output` cannot be written.
    """
    check_parameters(recipe)
    from kfp.compiler import Compiler
    from kfp.compiler.compiler_utils import KubernetesManifestOptions

    from pipelines.isr_dpo import build

    name = object_name(f"isr-dpo-{recipe.name}")
    version = object_name(f"{name}-{recipe.digest()[:12]}-{placement.name}")
    options = KubernetesManifestOptions(
        pipeline_name=name, pipeline_version_name=version, namespace=namespace, include_pipeline_manifest=True
    )
    pipeline = build(recipe, placement, run=run)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        Compiler().compile(
            pipeline,
            str(output),
            kubernetes_manifest_format=as_objects,
            kubernetes_manifest_options=options if as_objects else None,
        )
    except OSError as error:
        raise RecipeError(f"{output}: cannot be written: {error.strerror}") from error
    size = output.stat().st_size
    if size > MAX_BYTES:
        output.unlink()
        raise RecipeError(
            f"iterations = {recipe.iterations}: the package has {size} bytes, a cluster takes {MAX_BYTES}; "
            "fewer iterations, or run it on one machine: python -m pipelines run"
        )


def check_parameters(recipe: Recipe, run_uri: str | None = None) -> None:
    """Raises RecipeError: recipe and run URI (none: one of 1000 bytes) are more than KFP takes as parameters."""
    parameters = {"recipe": recipe.canonical(), "recipe_digest": recipe.digest(), "run_uri": run_uri or ""}
    size = len(json.dumps(parameters).encode()) + (0 if run_uri else _LONGEST_URI)
    if size <= MAX_PARAMETER_BYTES:
        return
    sections = recipe.model_dump(mode="json")
    longest = max(sections, key=lambda name: len(json.dumps(sections[name])))
    raise RecipeError(
        f"recipe {recipe.name}: a run's parameters would have {size} bytes, KFP takes {MAX_PARAMETER_BYTES}; most of "
        f"them are in its section {longest}: shorter URIs there, or fewer"
    )


def object_name(text: str) -> str:
    """`text` as the name of a Kubernetes object may read."""
    return re.sub(r"[^a-z0-9.-]+", "-", text.lower()).strip("-.")
