"""What a conversion writes, where, and what is left of one that is killed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from isr_dpo import models
from isr_dpo.cli import main
from isr_dpo.digests import hash_file
from isr_dpo.errors import ModelError, RunBusy, StoreError
from isr_dpo.models import convert
from isr_dpo.models.convert import destination
from isr_dpo.models.folder import check
from isr_dpo.stores import open_store, s3, write_bytes
from tests.models.convert.conftest import SMALL
from tests.models.convert.original_layout import Original, save, train_tokenizer
from tests.servers.hub_server import COMMIT, hub_server

Capture = pytest.CaptureFixture[str]


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_dry_run_lists_all_and_writes_nothing(source: Path, tmp_path: Path, capsys: Capture) -> None:
    (source / "mm_projector.bin").write_bytes(b"a leftover of its training")
    before = _names(tmp_path)
    assert main(["models", "convert", str(source), str(tmp_path / "policy"), "--dry-run"]) == 0
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    layer = "model.layers.{0..1}.self_attn.q_proj.weight"
    assert f"{layer} -> language_{layer.replace('model.', 'model.model.', 1)}" in shown
    assert "model.mm_projector.2.bias -> multi_modal_projector.linear_2.bias" in shown
    assert "model.layers.{0..1}.self_attn.rotary_emb.inv_freq: a buffer: computed from rope_theta" in shown
    assert "not read: mm_projector.bin, no part of the model by its index" in shown
    assert "class token: drop, 32 tokens a video; vocabulary 402" in shown
    assert "nothing was written: --dry-run" in shown
    assert _names(tmp_path) == before


def test_every_source_tensor_is_shown_as_used_or_left_out(source: Path) -> None:
    made = convert.plan(source)
    assert {*made.target.pairs, *made.target.left_out} == set(SMALL.shapes())
    assert all("inv_freq" in name or "position_ids" in name for name in made.target.left_out)


def test_values_and_dtype_stay_and_the_added_tokens_are_zeros(tmp_path: Path, pieces: Path) -> None:
    original = replace(SMALL, dtype=torch.bfloat16)
    weights = original.weights()
    folder = save(tmp_path / "source", original, weights, pieces, kind="bin", shards=1)
    convert.convert(convert.plan(folder), str(tmp_path / "policy"))
    made = load_file(tmp_path / "policy" / "model.safetensors")
    assert {tensor.dtype for tensor in made.values()} == {torch.bfloat16}
    for name, values in (("embed_tokens", "language_model.model.embed_tokens"), ("lm_head", "language_model.lm_head")):
        stem = name if name == "lm_head" else f"model.{name}"
        assert made[f"{values}.weight"][:400].equal(weights[f"{stem}.weight"])
        assert not made[f"{values}.weight"][400:].any()
        assert len(made[f"{values}.weight"]) == 402
    assert json.loads((tmp_path / "policy" / "config.json").read_text())["dtype"] == "bfloat16"


def test_what_was_saved_before_torch_1_6_is_read_too(bin_source: Path, tmp_path: Path) -> None:
    convert.convert(convert.plan(bin_source), str(tmp_path / "zip"))
    for path in bin_source.glob("*.bin"):
        torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    convert.convert(convert.plan(bin_source), str(tmp_path / "legacy"))
    for path in (tmp_path / "zip").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "legacy" / path.name).read_bytes()


def test_the_names_are_those_that_the_class_is_saved_by(source: Path, tmp_path: Path) -> None:
    convert.convert(convert.plan(source), str(tmp_path / "policy"))
    models.save(models.load(tmp_path / "policy", dtype="float64"), tmp_path / "saved")
    held = [load_file(path) for path in sorted((tmp_path / "policy").glob("*.safetensors"))]
    assert {name for part in held for name in part} == load_file(tmp_path / "saved" / "model.safetensors").keys()
    check(tmp_path / "policy")


def test_the_class_token_is_kept_where_one_says_so(source: Path, tmp_path: Path) -> None:
    main(["models", "convert", str(source), str(tmp_path / "policy"), "--class-token", "keep"])
    config = json.loads((tmp_path / "policy" / "config.json").read_text())
    assert "video_class_token" not in config
    assert config["video_seq_length"] == 8 * 5
    assert json.loads((tmp_path / "policy" / "processor_config.json").read_text())["num_additional_image_tokens"] == 1


def test_provenance_says_from_what_and_how(source: Path, tmp_path: Path) -> None:
    main(["models", "convert", str(source), str(tmp_path / "policy")])
    found = json.loads((tmp_path / "policy" / convert.PROVENANCE).read_text())
    path = source / "model-00002-of-00002.safetensors"
    assert found["files"][path.name] == {"size": path.stat().st_size, "sha256": hash_file(path)}
    assert {"config.json", "tokenizer.model"} < found["files"].keys()
    assert found["source"] == str(source)
    assert (found["rule"], found["options"]["class_token"]) == (1, "drop")


def test_a_tower_that_is_described_takes_its_heads_and_activation(source: Path, tmp_path: Path) -> None:
    path = source / "config.json"
    path.write_text(path.read_text().replace("LanguageBind_Video_merge", "Another"))
    tower = tmp_path / "tower.json"
    tower.write_text(json.dumps({"num_attention_heads": 4, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-6}))
    vision = convert.plan(source, tower=tower).target.config.vision_config
    assert (vision.num_attention_heads, vision.hidden_act, vision.layer_norm_eps) == (4, "quick_gelu", 1e-6)
    assert (vision.num_frames, vision.hidden_size, vision.image_size) == (8, 32, 28)


def test_tokens_added_to_the_sentencepiece_model_come_before_ours(tmp_path: Path) -> None:
    pieces = train_tokenizer(tmp_path, size=390)
    original = Original(391)
    folder = save(tmp_path / "source", original, original.weights(), pieces, kind="safetensors")
    (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": 390, "<s>": 1}))
    tokenizer = convert.plan(folder).target.processor.tokenizer
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "<image>", "<video>"]) == [390, 391, 392]
    (folder / "added_tokens.json").write_text(json.dumps({"<video>": 390}))
    with pytest.raises(ModelError, match="its vocabulary has <video> already"):
        convert.plan(folder)
    (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": "last"}))
    with pytest.raises(ModelError, match=r"added_tokens\.json: puts \[PAD\] at 'last'"):
        convert.plan(folder)


@pytest.mark.parametrize("run_uri", ["moto"], indirect=True)
def test_what_others_have_put_at_a_destination_meanwhile_stands(run_uri: str) -> None:
    with pytest.raises(ModelError, match="1 objects are there already"), destination.staged(run_uri):
        write_bytes(f"{run_uri}/config.json", b"theirs")
    assert list(open_store(run_uri).list(run_uri)) == ["config.json"]


def test_the_original_layout_is_named_where_a_policy_is_wanted(source: Path) -> None:
    with pytest.raises(ModelError, match="isr-dpo models convert"):
        check(source)


KILLED = """
import os, signal, sys
from isr_dpo.cli import main
from isr_dpo.models.convert import shards

write = shards.write

def halfway(path, entries, read, progress):
    if "model-00002" in path.name:
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, entries, read, progress)

shards.write = halfway
main(["models", "convert", *sys.argv[1:]])
"""


def test_a_killed_conversion_leaves_nothing_that_looks_complete(source: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policies" / "hound"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(source), str(policy)], capture_output=True, timeout=240)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert not policy.exists()
    (left,) = policy.parent.iterdir()
    assert (left / "model-00002-of-00002.safetensors").exists()
    assert not (left / "config.json").exists()
    assert main(["models", "convert", str(source), str(policy)]) == 0
    check(policy)
    assert _names(policy.parent) == {"hound"}


def test_a_conversion_that_fails_clears_up_after_itself(source: Path, tmp_path: Path) -> None:
    plan = convert.plan(source)
    (source / "model-00002-of-00002.safetensors").unlink()
    before = _names(tmp_path)
    with pytest.raises(StoreError, match=r"model-00002-of-00002.*No such file"):
        convert.convert(plan, str(tmp_path / "policy"))
    assert _names(tmp_path) == before


def test_a_source_that_changes_meanwhile_is_noticed(bin_source: Path, tmp_path: Path) -> None:
    plan = convert.plan(bin_source)
    path = bin_source / "pytorch_model-00001-of-00002.bin"
    tensors = torch.load(path, weights_only=True)
    torch.save({name: tensor[:1].clone() for name, tensor in tensors.items()}, path)
    with pytest.raises(ModelError, match="changed while it was read"):
        convert.convert(plan, str(tmp_path / "policy"))
    assert not (tmp_path / "policy").exists()


def test_two_conversions_do_not_write_one_destination(source: Path, tmp_path: Path) -> None:
    with destination.staged(str(tmp_path / "policy")), pytest.raises(RunBusy, match="another conversion writes"):
        convert.convert(convert.plan(source), str(tmp_path / "policy"))


@pytest.mark.parametrize("next_one", [False, True])
def test_one_that_comes_as_another_ends_does_not_hold_what_is_gone(
    next_one: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other's folder is opened, but gone when it is locked; a third one may have begun there."""
    policy, lock = str(tmp_path / "policy"), fcntl.flock
    with contextlib.ExitStack() as others:
        first = contextlib.ExitStack()
        first.enter_context(destination.staged(policy)).joinpath("config.json").write_text("{}")

        def late(descriptor: int, operation: int) -> None:
            monkeypatch.setattr(fcntl, "flock", lock)
            first.close()
            if next_one:
                (others.enter_context(destination.staged(policy)) / "weights").write_text("theirs")
            lock(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", late)
        with pytest.raises(RunBusy, match="another conversion"), destination.staged(policy):
            pass
        if next_one:
            assert (destination.staging_folder(policy) / "weights").read_text() == "theirs"
            (tmp_path / "policy" / "config.json").unlink()


@pytest.mark.parametrize("run_uri", ["moto"], indirect=True)
def test_a_source_in_s3_is_fetched_again_where_it_has_changed(
    run_uri: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISR_DPO_CACHE", str(tmp_path / "cache"))
    store = open_store(run_uri)
    for path in source.iterdir():
        store.put(path, f"{run_uri}/{path.name}")
    write_bytes(f"{run_uri}/adapter_config.json", b"{}")
    assert main(["models", "convert", run_uri, str(tmp_path / "policy")]) == 7
    store.delete(f"{run_uri}/adapter_config.json")
    changed = source / "model-00001-of-00002.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(changed).items()}, changed, metadata={"format": "pt"})
    store.put(changed, f"{run_uri}/{changed.name}")  # of the same size
    assert main(["models", "convert", run_uri, str(tmp_path / "policy"), "--dry-run"]) == 0

    (cached,) = (tmp_path / "cache").iterdir()
    for path in cached.iterdir():
        os.utime(path, (time.time() + 9, time.time() + 9))  # fetched well after it was written
    asked, get = [], s3.S3Store.get
    monkeypatch.setattr(s3.S3Store, "get", lambda self, uri, path: (asked.append(uri), get(self, uri, path)))
    assert main(["models", "convert", run_uri, str(tmp_path / "policy")]) == 0
    assert not asked
    convert.convert(convert.plan(source), str(tmp_path / "expected"))
    assert (tmp_path / "policy" / changed.name).read_bytes() == (tmp_path / "expected" / changed.name).read_bytes()


@pytest.mark.parametrize("run_uri", ["moto", "ceph"], indirect=True)
def test_a_prefix_in_s3_is_complete_or_no_model(
    run_uri: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("ISR_DPO_CACHE", str(tmp_path / "cache"))
    put = s3.S3Store.put

    def killed(self: s3.S3Store, path: Path, uri: str, *, if_absent: bool = False) -> None:
        if "model-00002" in uri:
            raise KeyboardInterrupt
        put(self, path, uri, if_absent=if_absent)

    monkeypatch.setattr(s3.S3Store, "put", killed)
    assert main(["models", "convert", str(source), run_uri]) == 130
    left = open_store(run_uri).list(run_uri)
    assert "unfinished.json" in left
    assert "config.json" not in left

    monkeypatch.setattr(s3.S3Store, "put", put)
    destination.staging_folder(run_uri).mkdir()
    (destination.staging_folder(run_uri) / "of-a-killed-one.safetensors").write_bytes(b"half")
    assert main(["models", "convert", str(source), run_uri]) == 0
    there = open_store(run_uri).list(run_uri)
    assert "unfinished.json" not in there
    assert "of-a-killed-one.safetensors" not in there
    for name in there:
        (tmp_path / "policy").mkdir(exist_ok=True)
        open_store(run_uri).get(f"{run_uri}/{name}", tmp_path / "policy" / name)
    check(tmp_path / "policy")
    assert not list((tmp_path / "cache").iterdir())
    assert main(["models", "convert", str(source), run_uri]) == 7
    assert "objects are there already" in capsys.readouterr().err


def test_a_checkpoint_of_a_hub_is_fetched_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("ISR_DPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    with hub_server(
        {**files, "README.md": b"a model", "pytorch_model.bin": b"the same again", "optimizer.bin": b"huge"}
    ) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        assert main(["models", "convert", "hf://org/tiny", str(tmp_path / "policy"), "--dry-run"]) == 0
        assert main(["models", "convert", "hf://org/tiny", str(tmp_path / "policy")]) == 0
        asked = [request for request in served.asked if request.startswith("GET")]
    assert sum("model-00001-of-00002.safetensors" in request for request in asked) == 1
    assert not any(
        any(name in request for name in ("README.md", "pytorch_model.bin", "optimizer.bin")) for request in asked
    )
    check(tmp_path / "policy")
    assert json.loads((tmp_path / "policy" / convert.PROVENANCE).read_text())["source"] == f"hf://org/tiny@{COMMIT}"
    assert not list((tmp_path / "cache").iterdir())
    capsys.readouterr()
