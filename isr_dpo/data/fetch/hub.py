"""Archives of a data set on a Hugging Face hub; HF_ENDPOINT and HF_TOKEN are the environment's."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TypeVar

from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from isr_dpo.data.fetch import chunks
from isr_dpo.errors import DataError, OutsideError, RecipeError, StoreError

T = TypeVar("T")

_FORM = re.compile(r"hf://datasets/(?P<name>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<folder>.*?))?/?")


def hub_chunks(source: str) -> list[chunks.Chunk]:
    """The archives of a folder, at the commit that its revision is now: all of them are of one state.

    Raises:
        RecipeError: `source` is not hf://datasets/ORGANISATION/NAME[@REVISION]/FOLDER.
        DataError: no such data set, revision or folder.
        StoreError: the hub wants another HF_TOKEN.
        OutsideError: the hub stays away.
    """
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.hf_api import RepoFile

    match = _FORM.fullmatch(source)
    if match is None:
        raise RecipeError(f"{source}: written as hf://datasets/ORGANISATION/NAME[@REVISION]/FOLDER")
    name, folder = match["name"], match["folder"] or None
    token, endpoint = os.environ.get("HF_TOKEN") or None, os.environ.get("HF_ENDPOINT") or None
    api = HfApi(endpoint=endpoint, token=token or False)
    commit = _asked(lambda: api.dataset_info(name, revision=match["revision"]).sha, source)
    listed = _asked(lambda: list(api.list_repo_tree(name, folder, repo_type="dataset", revision=commit)), source)
    return [
        chunks.remote(
            hf_hub_url(name, file.path, repo_type="dataset", revision=commit, endpoint=endpoint),
            token=token,
            size=file.size,
            place=f"hf://datasets/{name}/{file.path}",
            identity=f"{file.lfs.sha256 if file.lfs else file.blob_id} {file.size}",
        )
        for file in listed
        if isinstance(file, RepoFile) and file.path.endswith(chunks.ARCHIVES)
    ]


@retry(
    retry=retry_if_exception_type(OutsideError),
    stop=stop_after_attempt(5),
    wait=wait_exponential_jitter(initial=0.5, max=30),
    reraise=True,
)
def _asked(call: Callable[[], T], source: str) -> T:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return call()
    except HFValidationError as error:
        raise RecipeError(f"{source}: {error}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise StoreError(
                f"{source}: the hub refuses ({status}): no such data set, or HF_TOKEN may not read it"
            ) from error
        if status in (404, 410):
            raise DataError(f"{source}: no such data set, revision or folder on the hub") from error
        raise OutsideError(f"{source}: the hub answers {status}; run again when it is well") from error
    except Exception as error:  # the transport's: which one that is depends on the hub's version
        raise OutsideError(f"{source}: no answer from the hub ({error}); check HF_ENDPOINT, run again") from error
