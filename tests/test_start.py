"""What policy-00 is: a folder, a policy of another run, a remote folder that no run has made, or nobody here."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from isr_dpo import manifest, outputs
from isr_dpo.config import Recipe
from isr_dpo.errors import ModelError
from isr_dpo.manifest import Origin
from isr_dpo.outputs import Output
from isr_dpo.start import start_manifest
from isr_dpo.stores import open_store
from tests.servers.hub_server import COMMIT, hub_server
from tests.tiny import make_policy

REMOTE = pytest.mark.parametrize("run_uri", ["moto"], indirect=True)


def recipe(**sections: Any) -> Recipe:
    tree = {"name": "bench", "iterations": 0, "data": {"sets": {"dev": "dev.qa.jsonl"}}}
    return Recipe.model_validate(tree | sections)


def start(uri: str) -> Recipe:
    return recipe(model={"start": uri})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("plain"))


def upload(folder: Path, uri: str) -> None:
    for path in folder.iterdir():
        open_store(uri).put(path, f"{uri}/{path.name}")


@REMOTE
def test_a_remote_folder_that_no_run_has_made_is_fetched_checked_and_hashed(
    run_uri: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISR_DPO_CACHE", str(tmp_path / "cache"))
    upload(model, run_uri)
    open_store(run_uri).put(model / "config.json", f"{run_uri}/pytorch_model.bin")
    made = start_manifest(start(run_uri))
    plain = start_manifest(start(str(model)))
    assert made.uri == run_uri
    assert dict(made.files) == dict(plain.files)  # and so without the .bin
    assert made.digest == plain.digest

    with monkeypatch.context() as patch:
        patch.setattr("isr_dpo.stores.s3.S3Store.get", lambda *_: pytest.fail("it is in the cache already"))
        folder = manifest.files(made)
    assert {path.name for path in folder.iterdir()} == set(made.files)


@REMOTE
def test_a_remote_folder_is_fetched_once_a_run_and_again_when_it_has_changed(
    run_uri: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(model, run_uri)
    made = start_manifest(start(run_uri))
    with monkeypatch.context() as patch:
        patch.setattr("isr_dpo.start._hashed", lambda folder: pytest.fail("it was fetched again"))
        assert start_manifest(start(run_uri), made) is made
    open_store(run_uri).put(model / "config.json", f"{run_uri}/added.json")
    assert start_manifest(start(run_uri), made).digest != made.digest


@REMOTE
def test_a_second_run_that_fetches_the_same_model_takes_nothing_away_from_the_first(
    run_uri: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISR_DPO_CACHE", str(tmp_path / "cache"))
    upload(model, run_uri)
    made = start_manifest(start(run_uri))
    (manifest.files(made) / "config.json").write_text("half")
    first = os.open(manifest.files(made, ["tokenizer.json"]), os.O_RDONLY)
    assert start_manifest(start(run_uri)) == made
    assert set(os.listdir(first)) == set(made.files)
    os.close(first)
    monkeypatch.setattr("isr_dpo.stores.s3.S3Store.get", lambda *_: pytest.fail("it is in the cache already"))
    manifest.files(made)


@REMOTE
def test_a_remote_folder_that_is_no_whole_model_is_refused(run_uri: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no manifest\.json of a finished run, nor a model's config\.json"):
        start_manifest(start(run_uri))
    cut = Path(shutil.copytree(model, tmp_path / "cut"))
    (cut / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-9])
    upload(cut, run_uri)
    with pytest.raises(ModelError, match=r"model\.start: s3://.*not written or copied to its end"):
        start_manifest(start(run_uri))


def test_a_policy_of_another_run_brings_its_own_manifest(tmp_path: Path) -> None:
    for kind in ("policy", "dataset"):
        out = outputs.begin(str(tmp_path / kind), Origin(kind, "train", {}, "", ""))
        assert isinstance(out, Output)
        out.write("config.json", b"{}")
        out.seal(rows=0, deterministic=True)
    assert start_manifest(start(str(tmp_path / "policy"))).step == "train"
    with pytest.raises(ModelError, match="holds dataset of a run, not a policy"):
        start_manifest(start(str(tmp_path / "dataset")))


def test_what_a_download_keeps_for_itself_is_no_part_of_a_model(model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    kept = copy / ".cache" / "huggingface" / "download.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("just now")
    (copy / ".gitattributes").write_text("*.safetensors filter=lfs")
    assert start_manifest(start(str(copy))).files == start_manifest(start(str(model))).files


def test_a_system_that_is_not_run_here_has_no_files() -> None:
    served = start_manifest(recipe(engine={"kind": "openai", "model": "gpt"}))
    assert (served.uri, served.files) == ("served:gpt", {})
    imported = start_manifest(recipe(answer={"predictions": {"dev": "dev.jsonl"}}))
    assert (imported.uri, imported.files) == ("predictions", {})
    manifest.verify(served)


def test_a_model_of_a_hub_is_taken_at_the_commit_that_it_has_now(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("ISR_DPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    with hub_server({**files, "README.md": b"a model"}) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        made = start_manifest(start("hf://org/tiny"))
        assert made.uri == f"hf://org/tiny@{COMMIT}"
        assert dict(made.files) == dict(start_manifest(start(str(model))).files)
        fetched = len(served.asked)
        assert start_manifest(start("hf://org/tiny"), made) is made
        assert len(served.asked) == fetched + 3  # the commit, no manifest, the list
    assert {path.name for path in manifest.files(made).iterdir()} == set(files)
