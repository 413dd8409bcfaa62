"""A policy folder is whole or refused, before anything is loaded from it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from isr_dpo import config, models
from isr_dpo.engines import open_engine
from isr_dpo.errors import ModelError
from isr_dpo.models.folder import check
from tests.families import FAMILIES, build

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("whole"), "video_llava")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "policy"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_of_every_family_is_whole(family: str, tmp_path: Path) -> None:
    check(build(tmp_path, family))


def shard(folder: Path) -> None:
    """The weights as two shards and their index."""
    tensors = load_file(folder / WEIGHTS)
    halves: list[dict[str, np.ndarray]] = [{}, {}]
    for number, (name, tensor) in enumerate(tensors.items()):
        halves[number % 2][name] = tensor
    (folder / WEIGHTS).unlink()
    for number, half in enumerate(halves):
        save_file(half, folder / f"model-{number}.safetensors")
    places = {name: f"model-{number}.safetensors" for number, half in enumerate(halves) for name in half}
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


def test_shards_are_a_whole_policy_too(folder: Path) -> None:
    shard(folder)
    check(folder)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-1\.safetensors is missing"):
        check(folder)


def test_a_finished_policy_whose_step_was_killed_before_it_removed_its_marker_is_whole(folder: Path) -> None:
    (folder / "unfinished.json").write_text("{}")
    (folder / "manifest.json").write_text("{}")
    check(folder)


def test_a_shard_that_lacks_a_tensor_of_the_index_is_refused(folder: Path) -> None:
    shard(folder)
    tree = json.loads((folder / INDEX).read_text())
    tree["weight_map"]["model.other"] = "model-1.safetensors"
    (folder / INDEX).write_text(json.dumps(tree))
    with pytest.raises(ModelError, match=r"model-1\.safetensors: lacks model\.other"):
        check(folder)


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def cut_header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:100])


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def another(folder: Path) -> None:
    (folder / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, r"bytes, its header says \d+: not written or copied to its end"),
        (cut_header, "cut off in its header"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b""), r"cut off in its header \(0 bytes\)"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"\x04" + b"\0" * 7 + b"abcd"), "header is not safetensors'"),
        (pickled, r"pytorch_model\.bin there: only safetensors are read"),
        (another, "GPT2LMHeadModel is not supported"),
        (lambda folder: (folder / "config.json").write_text("{"), "names no single architecture"),
        (lambda folder: (folder / "config.json").unlink(), r"no config\.json"),
        (lambda folder: (folder / "unfinished.json").write_text("{}"), "half-written"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda folder: (folder / "processor_config.json").unlink(), "no processor"),
    ],
)
def test_what_is_no_whole_policy_is_refused_by_name(
    folder: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(folder)
    with pytest.raises(ModelError, match=message):
        open_engine(config.Engine(), config.Model(start="x", registered_name="x"), folder, lambda _: np.empty(0))


def test_weights_that_lack_a_tensor_are_not_filled_up_at_random(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors[next(name for name in tensors if name.endswith("norm.weight"))]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 tensors are missing, .*norm\.weight first"):
        models.load(folder)


def test_the_check_loads_no_torch(folder: Path) -> None:
    script = (
        "import sys, pathlib; from isr_dpo.models.folder import check; check(pathlib.Path(sys.argv[1]));"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(folder)], check=False).returncode == 0
