"""Who still needs a policy's weights: the registry's aliases, and other runs that start from it. Whatever cannot be
asked stops the clearing; nothing is deleted on doubt."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isr_dpo import layout, manifest
from isr_dpo.errors import CorruptOutput
from isr_dpo.manifest import BUILTIN
from isr_dpo.mlflow_client import open_client, translated
from isr_dpo.stores import Missing, join, read_bytes
from isr_dpo.stores.surveyed import folders
from isr_dpo.tracking import PREFIX

_PAGE = 100
_POLICY = re.compile(r"policy-(\d{2,})")


@dataclass(frozen=True)
class Registry:
    """What MLflow says: by policy URI who needs it, and the URIs of all runs that have registered something."""

    needed: Mapping[str, tuple[str, ...]]
    runs: frozenset[str]

    def policies(self, run_uri: str) -> dict[int, list[str]]:
        """Of a run, by index, with the reasons."""
        found: dict[int, list[str]] = defaultdict(list)
        for uri, reasons in sorted(self.needed.items()):
            index = policy_in(run_uri, uri)
            if index is not None:
                found[index] += reasons
        return found


def read_registry(uri: str) -> Registry:
    """All registered models at the MLflow `uri`: versions with an alias (champion, previous, challenger or any other),
    and the best of each run.

    Raises:
        OutsideError: MLflow is away.
        RecipeError: there is no such database.
    """
    client = open_client(uri, create=False)
    needed: dict[str, list[str]] = defaultdict(list)
    runs = set()
    with translated(uri):
        for model in _pages(lambda token: client.search_registered_models(max_results=_PAGE, page_token=token)):
            for alias in sorted(client.get_registered_model(model.name).aliases):
                version = client.get_model_version_by_alias(model.name, alias)
                needed[str(version.source)].append(f"{alias} of {model.name}")
        for version in _pages(lambda token: client.search_model_versions(max_results=_PAGE, page_token=token)):
            if PREFIX + "run_uri" in version.tags:
                runs.add(version.tags[PREFIX + "run_uri"])
            if version.tags.get("best-of-run") == "true":
                needed[str(version.source)].append("best of its run")
    return Registry({source: tuple(reasons) for source, reasons in needed.items()}, frozenset(runs))


def forks(run_uri: str, others: frozenset[str]) -> dict[int, list[str]]:
    """Policies of the run that another run starts from, by index: among `others` and the runs beside it.

    Raises:
        CorruptOutput: a run's record cannot be read.
        OutsideError, StoreError: another run's store is away, or refuses.
    """
    found: dict[int, list[str]] = defaultdict(list)
    for other in sorted({*others, *_siblings(run_uri)}):
        if _place(other) != _place(run_uri):
            for index in sorted({i for uri in _starts(other) if (i := policy_in(run_uri, uri)) is not None}):
                found[index].append(f"start of {other}")
    return found


def policy_in(run_uri: str, uri: str) -> int | None:
    """The index of the run's policy that `uri` is, or lies in. A relative path, whose base nobody knows any more, is
    the run's where its last two names are."""
    place, run = _place(uri), _place(run_uri)
    relative = "://" not in uri and not Path(uri).is_absolute()
    if place.startswith(run + "/"):
        below = place.removeprefix(run + "/")
    elif relative and Path(uri).parent.name == run.rpartition("/")[2]:
        below = Path(uri).name
    else:
        return None
    match = _POLICY.fullmatch(below.split("/")[0])
    return int(match[1]) if match else None


def _starts(run_uri: str) -> Iterator[str]:
    """What a run says that it starts from; nothing where no run lies there."""
    try:
        tree = json.loads(read_bytes(layout.run_file(run_uri)))
        start = tree["recipe"]["model"]["start"]
    except Missing:
        start = None
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptOutput(
            f"{layout.run_file(run_uri)}: not a run's record ({error}), so nobody knows what it starts from: mend or "
            "delete it"
        ) from error
    if start is not None and not start.startswith((BUILTIN, "hf://")):
        yield str(start)
    origin = manifest.find(layout.policy(run_uri, 0))
    if origin is not None:
        yield origin.uri


def _siblings(run_uri: str) -> list[str]:
    folder, slash, _ = run_uri.rstrip("/").rpartition("/")
    if not slash:
        folder = "."
    if folder.endswith(":/") or not folder:  # a bucket of its own, or the root
        return []
    return [join(folder, name) for name in folders(folder)]


def _place(uri: str) -> str:
    """`uri` in one form: an object store's as it is, a path absolute and without links."""
    path = uri.removeprefix("file://")
    return path.rstrip("/") if "://" in path else str(Path(path).resolve())


def _pages(ask: Any) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = ask(token)
        yield from page
        token = page.token or None
        if token is None:
            return
