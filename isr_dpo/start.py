"""Policy-00: the model that a run starts from, or that a benchmark evaluates. It stays where it lies."""

from __future__ import annotations

import os
from pathlib import Path

from isr_dpo import manifest, removed
from isr_dpo.config import Recipe
from isr_dpo.digests import code_version, hash_file
from isr_dpo.errors import ModelError
from isr_dpo.manifest import File, Manifest, Origin, content_digest
from isr_dpo.models.folder import check
from isr_dpo.scratch import scratch
from isr_dpo.stores import hub, join, open_store

PARTS = (".json", ".safetensors", ".jinja", ".model", ".txt")
"""Files of a Hugging Face folder that a policy can consist of; weights in other formats are never read."""


def start_manifest(recipe: Recipe, standing: Manifest | None = None) -> Manifest:
    """What policy-00 is: a finished policy of another run brings its own manifest, of a plain folder one is made.
    `standing` is the run's own from an earlier attempt, which saves a remote folder from being fetched again.

    A system that is not run here has no files: a served model, or the author of prediction files.

    Raises:
        ModelError: no whole policy there.
        DataError: its weights were removed.
    """
    uri = recipe.model.start
    if uri is None:
        who = "predictions" if recipe.answer.predictions else f"served:{recipe.engine.model}"
        return _manifest(who, {})
    if uri.startswith(hub.SCHEME):
        uri = hub.pinned(uri)
    if not uri.startswith(manifest.BUILTIN) and (finished := manifest.find(uri)) is not None:
        if finished.kind != "policy":
            raise ModelError(f"model.start: {uri} holds {finished.kind} of a run, not a policy")
        removed.refuse(finished.uri)
        return finished
    folder = manifest.local_folder(uri)
    if folder is not None:
        return _manifest(uri, _hashed(folder))
    return _fetched(uri, standing)


def check_start(recipe: Recipe) -> None:
    """Raises ModelError: no whole policy of a supported family in the local folder; DataError: its weights were
    removed. A remote one is checked when it is fetched."""
    uri = recipe.model.start
    folder = None if uri is None else manifest.local_folder(uri)
    if folder is None:
        return
    removed.refuse(str(folder))
    try:
        check(folder)
    except ModelError as error:
        raise ModelError(f"model.start: {error}; accepted: a folder, s3://, hf://, builtin:world") from error


def _fetched(uri: str, standing: Manifest | None) -> Manifest:
    """The manifest of a remote folder that no run has made: fetched once into the cache, to be checked and hashed."""
    listed = open_store(uri).list(uri)
    sizes = {name: size for name, size in listed.items() if name.endswith(PARTS) and not _is_hidden(name)}
    if standing is not None and standing.uri == uri and sizes == {n: f.size for n, f in standing.files.items()}:
        return standing
    if "config.json" not in sizes:
        raise ModelError(f"model.start: {uri} has no {manifest.MANIFEST} of a finished run, nor a model's config.json")
    cache = manifest.cache_folder()
    with scratch(cache) as folder:
        for name in sizes:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            open_store(uri).get(join(uri, name), folder / name)
        try:
            check(folder)
        except ModelError as error:
            raise ModelError(f"model.start: {uri}: {error}") from error
        made = _manifest(uri, _hashed(folder))
        kept = cache / made.digest  # where manifest.files looks, of another run too
        for name in made.files:
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder / name, kept / name)
    return made


def _hashed(folder: Path) -> dict[str, File]:
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: File(path.stat().st_size, hash_file(path)) for name, path in paths.items() if not _is_hidden(name)}


def _is_hidden(name: str) -> bool:
    """What `hf download` and git keep beside a model for themselves; it changes when they look again."""
    return any(part.startswith(".") for part in name.split("/"))


def _manifest(uri: str, files: dict[str, File]) -> Manifest:
    return Manifest(
        **vars(Origin("policy", "preflight", {}, "", "")),
        uri=uri,
        code_version=code_version(),
        deterministic=True,
        rows=0,
        files=files,
        digest=content_digest("policy", files),
    )
