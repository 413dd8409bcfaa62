"""Models and data sets of a Hugging Face hub as a store that is only read; HF_ENDPOINT and HF_TOKEN are the
environment's."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn, TypeVar, cast

from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from isr_dpo.errors import DataError, OutsideError, RecipeError, StoreError
from isr_dpo.stores import Missing

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

SCHEME = "hf://"
_FORM = re.compile(r"hf://(?P<kind>datasets/)?(?P<name>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<path>.*?))?/?")


class _Place(NamedTuple):
    kind: str
    """`model` or `dataset`, as huggingface_hub has it."""
    name: str
    revision: str | None
    path: str


class HubStore:
    """Files of hf://ORGANISATION/NAME[@REVISION], or hf://datasets/ORGANISATION/NAME[@REVISION]: names below it are the
    repository's.

    Raises StoreError where the hub wants another HF_TOKEN, and wherever something is to be written; OutsideError where
    the hub stays away.
    """

    def get(self, uri: str, path: Path) -> None:
        place = _place(uri)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            try:
                made = asked(
                    lambda: _api().hf_hub_download(
                        place.name, place.path, repo_type=place.kind, revision=place.revision, local_dir=scratch
                    ),
                    uri,
                    what=place.kind,
                )
            except DataError as error:
                raise Missing(uri) from error
            os.replace(made, path)

    def list(self, uri: str) -> dict[str, int]:
        from huggingface_hub.hf_api import RepoFile

        place = _place(uri)
        try:
            found = asked(
                lambda: list(
                    _api().list_repo_tree(
                        place.name, place.path or None, repo_type=place.kind, recursive=True, revision=place.revision
                    )
                ),
                uri,
                what=place.kind,
            )
        except DataError:
            return {}
        prefix = f"{place.path}/" if place.path else ""
        return {file.path.removeprefix(prefix): file.size for file in found if isinstance(file, RepoFile)}

    def put(self, path: Path, uri: str, *, if_absent: bool = False) -> None:
        _refuse(uri)

    def delete(self, uri: str) -> None:
        _refuse(uri)


def pinned(uri: str) -> str:
    """`uri` at the commit that its revision is now.

    Raises:
        DataError: no such model or revision.
    """
    place = _place(uri)
    commit = asked(lambda: _api().model_info(place.name, revision=place.revision).sha, uri)
    return f"{SCHEME}{place.name}@{commit}" + (f"/{place.path}" if place.path else "")


@retry(
    retry=retry_if_exception_type(OutsideError),
    stop=stop_after_attempt(5),
    wait=wait_exponential_jitter(initial=0.5, max=30),
    reraise=True,
)
def asked(call: Callable[[], T], source: str, *, what: str = "model") -> T:
    """What a call of huggingface_hub returns, its errors translated; `what` is what `source` names.

    Raises:
        RecipeError: no such name can be.
        DataError: no such repository, revision, folder or file.
        StoreError: the hub wants another HF_TOKEN.
        OutsideError: the hub stays away.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # What its transport raises, which one that is depends on the library's version, and OSError.
    unreached = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
    try:
        return call()
    except HFValidationError as error:
        raise RecipeError(f"{source}: {error}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise StoreError(
                f"{source}: the hub refuses ({status}): no such {what}, or HF_TOKEN may not read it"
            ) from error
        if status in (404, 410):
            raise DataError(f"{source}: no such {what}, revision or folder on the hub") from error
        raise OutsideError(f"{source}: the hub answers {status}; run again when it is well") from error
    except unreached as error:
        raise OutsideError(f"{source}: no answer from the hub ({error}); check HF_ENDPOINT, run again") from error


def _place(uri: str) -> _Place:
    match = _FORM.fullmatch(uri)
    if match is None:
        raise RecipeError(f"{uri}: written as hf://ORGANISATION/NAME[@REVISION]")
    return _Place("dataset" if match["kind"] else "model", match["name"], match["revision"], match["path"] or "")


def _api() -> HfApi:
    """With the environment as it is now; the library has looked when it was imported."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=os.environ.get("HF_TOKEN") or False)


def _refuse(uri: str) -> NoReturn:
    raise StoreError(f"{uri}: a hub is only read; give a path or s3:// to write to")
