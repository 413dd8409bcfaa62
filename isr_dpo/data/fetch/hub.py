"""Archives of a data set on a Hugging Face hub; HF_ENDPOINT and HF_TOKEN are the environment's."""

from __future__ import annotations

import os
import re

from isr_dpo.data.fetch import chunks
from isr_dpo.errors import RecipeError
from isr_dpo.stores.hub import asked

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
    commit = asked(lambda: api.dataset_info(name, revision=match["revision"]).sha, source, what="data set")
    listed = asked(
        lambda: list(api.list_repo_tree(name, folder, repo_type="dataset", revision=commit)), source, what="data set"
    )
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
