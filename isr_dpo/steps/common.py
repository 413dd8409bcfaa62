"""What the steps share: their result, the keys each depends on, and how outputs begin and end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, TypeVar

from isr_dpo import layout, manifest, outputs, prompts
from isr_dpo.config import PROMPTED, SECTIONS, Recipe
from isr_dpo.data.frames import FrameStore
from isr_dpo.digests import canonical_digest, code_version
from isr_dpo.errors import CorruptOutput
from isr_dpo.manifest import File, Manifest, Origin
from isr_dpo.outputs import Output
from isr_dpo.records import Question, Row, TestRow, read_files
from isr_dpo.stores import Missing, join, read_bytes

METRICS = "metrics.json"
Inputs = Mapping[str, Manifest]
"""Manifests by the input's name."""
R = TypeVar("R", bound=Row)


class StepResult(NamedTuple):
    """What a step made. `reused`: it stood complete already. `page`: HTML for the pipeline's user interface."""

    manifest: Manifest
    metrics: Mapping[str, float]
    reused: bool
    page: str | None = None


def origin(recipe: Recipe, kind: str, step: str, inputs: Mapping[str, str]) -> Origin:
    """The origin of an output of `step` from inputs with these digests."""
    return Origin(
        kind=kind,
        step=step,
        inputs=dict(sorted(inputs.items())),
        recipe_section_digest=canonical_digest(recipe.section(SECTIONS[step])),
        prompts_digest=prompts.load(recipe.prompts).digest if step in PROMPTED else "",
    )


def begin(
    recipe: Recipe, kind: str, step: str, inputs: Inputs, uri: str, *, prompts_digest: str | None = None
) -> Manifest | Output:
    """`outputs.begin` for an output of `step`; `prompts_digest` of other prompts than the recipe's."""
    made_from = origin(recipe, kind, step, {name: made.digest for name, made in inputs.items()})
    if prompts_digest is not None:
        made_from = replace(made_from, prompts_digest=prompts_digest)
    return outputs.begin(uri, made_from)


def sealed(out: Output, metrics: Mapping[str, float], *, rows: int, deterministic: bool) -> StepResult:
    """Completes an output, its metrics among its files."""
    out.write(METRICS, (json.dumps(metrics, indent=1, sort_keys=True) + "\n").encode())
    return StepResult(out.seal(rows=rows, deterministic=deterministic), metrics, reused=False)


def reused(made: Manifest) -> StepResult:
    """The result of a step whose output stands complete, verified."""
    manifest.verify(made)
    return StepResult(made, metrics_of(made), reused=True)


def metrics_of(made: Manifest) -> dict[str, float]:
    """The metrics.json of an output; empty where it has none."""
    if METRICS not in made.files:
        return {}
    tree: dict[str, float] = json.loads((manifest.files(made, {METRICS}) / METRICS).read_bytes())
    return tree


def rows_of(made: Manifest, row_type: type[R], prefix: str = "part-") -> list[R]:
    """The rows of an output's `prefix*.jsonl` files."""
    names = {name for name in made.files if name.startswith(prefix)}
    return read_files(manifest.files(made, names), names, row_type)


def questions(dataset: Manifest) -> list[Question]:
    """The training rows, without ground truth."""
    return rows_of(dataset, Question, "train-")


def test_rows(dataset: Manifest, name: str) -> list[TestRow]:
    """The rows of an evaluation set, in their order."""
    file = f"set-{name}.jsonl"
    return read_files(manifest.files(dataset, {file}), [file], TestRow)


def frame_store(run_uri: str, dataset: Manifest) -> FrameStore:
    """The run's frames, which must be those that the dataset was prepared with."""
    made = manifest.find(layout.frames(run_uri))
    if made is None or made.digest != dataset.inputs["frames"]:
        raise CorruptOutput(
            f"{layout.frames(run_uri)} is not what {dataset.uri} was prepared with; delete both, run again"
        )
    return FrameStore(manifest.files(made))


def bundle(kind: str, step: str, uri: str, members: Mapping[str, Manifest]) -> Manifest:
    """One manifest for several directories below `uri`: its files are their manifests. It travels, it is not stored."""
    contents = {
        join(name, manifest.MANIFEST): _content(join(uri, name), made) for name, made in sorted(members.items())
    }
    files = {name: File(len(content), hashlib.sha256(content).hexdigest()) for name, content in contents.items()}
    return Manifest(
        kind=kind,
        uri=uri,
        step=step,
        inputs={name: made.digest for name, made in sorted(members.items())},
        recipe_section_digest="",
        prompts_digest="",
        code_version=code_version(),
        deterministic=all(made.deterministic for made in members.values()),
        rows=sum(made.rows for made in members.values()),
        files=files,
        digest=manifest.content_digest(kind, files),
    )


def _content(uri: str, made: Manifest) -> bytes:
    """As it stands: that of a moved run names its old place. One of a share does not stand yet."""
    try:
        return read_bytes(join(uri, manifest.MANIFEST))
    except Missing:
        return made.to_json().encode()


def members(made: Manifest) -> dict[str, Manifest]:
    """The manifests of a bundle by directory name, verified."""
    folder = manifest.files(made)
    names = [name.removesuffix("/" + manifest.MANIFEST) for name in made.files]
    return {
        name: manifest.parsed((folder / name / manifest.MANIFEST).read_bytes(), join(made.uri, name)) for name in names
    }
