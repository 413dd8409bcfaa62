"""What cannot be converted is refused with its reason, before anything is written at the destination."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from isr_dpo.cli import main
from isr_dpo.models.convert import destination
from tests.models.convert.original_layout import IMAGE, VIDEO, train_tokenizer

FIRST = "model-00001-of-00002.safetensors"
FIRST_BIN = "pytorch_model-00001-of-00002.bin"
Capture = pytest.CaptureFixture[str]


def _refused(source: Path, capsys: Capture, reason: str, *options: str) -> None:
    """Converting `source` ends with `reason`, and nothing appears beside it."""
    before = sorted(source.parent.iterdir())
    assert main(["models", "convert", str(source), str(source.parent / "policy"), *options]) == 7
    assert reason in capsys.readouterr().err
    assert sorted(source.parent.iterdir()) == before


def _set(source: Path, **values: Any) -> None:
    path = source / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _edit(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Changes a shard, and the index with it."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    index = path.parent / "model.safetensors.index.json"
    tree = json.loads(index.read_text())
    others = {name: file for name, file in tree["weight_map"].items() if file != path.name}
    index.write_text(json.dumps({"weight_map": {**others, **dict.fromkeys(tensors, path.name)}}))


def _cut(path: Path, size: int) -> None:
    os.truncate(path, path.stat().st_size - size)


def _shard_of(source: Path, tensor: str) -> Path:
    index = json.loads((source / "model.safetensors.index.json").read_text())
    return source / str(index["weight_map"][tensor])


def test_a_truncated_safetensors_shard(source: Path, capsys: Capture) -> None:
    _cut(source / FIRST, 100)
    _refused(source, capsys, f"{FIRST}: has")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_bin_shard(zipped: bool, bin_source: Path, capsys: Capture) -> None:
    path = bin_source / FIRST_BIN
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=zipped)
    _cut(path, 5000)
    _refused(bin_source, capsys, f"{FIRST_BIN}: cut off")


def test_an_empty_bin_shard(bin_source: Path, capsys: Capture) -> None:
    (bin_source / FIRST_BIN).write_bytes(b"")
    _refused(bin_source, capsys, f"{FIRST_BIN}: cut off (0 bytes)")


def test_a_missing_index_entry(source: Path, capsys: Capture) -> None:
    path = source / "model.safetensors.index.json"
    tree = json.loads(path.read_text())
    del tree["weight_map"]["model.norm.weight"]
    path.write_text(json.dumps(tree))
    _refused(source, capsys, "has no entry for model.norm.weight")


def test_an_index_entry_without_its_tensor(source: Path, capsys: Capture) -> None:
    path = source / "model.safetensors.index.json"
    tree = json.loads(path.read_text())
    tree["weight_map"]["model.more.weight"] = FIRST
    path.write_text(json.dumps(tree))
    _refused(source, capsys, f"{FIRST}: lacks model.more.weight")


def test_shards_without_their_index(source: Path, capsys: Capture) -> None:
    (source / "model.safetensors.index.json").unlink()
    _refused(source, capsys, f"{FIRST} is a shard, but their index")


@pytest.mark.parametrize("kind", ["missing", "outside"])
def test_a_shard_that_is_not_there(kind: str, source: Path, capsys: Capture) -> None:
    if kind == "missing":
        (source / FIRST).unlink()
        _refused(source, capsys, f"names the shard {FIRST}, which is not there")
        return
    path = source / "model.safetensors.index.json"
    path.write_text(path.read_text().replace(FIRST, f"../source/{FIRST}"))
    _refused(source, capsys, f"names the shard ../source/{FIRST}, which is not there")


def test_a_shard_that_the_index_does_not_know(source: Path, capsys: Capture) -> None:
    (source / "model-00003-of-00003.safetensors").write_bytes((source / FIRST).read_bytes())
    _refused(source, capsys, "lacks the shard model-00003-of-00003.safetensors")


@pytest.mark.parametrize("projector", ["linear", "mlp3x_gelu", None])
def test_an_unknown_projector(projector: str | None, source: Path, capsys: Capture) -> None:
    _set(source, mm_projector_type=projector)
    _refused(source, capsys, f"mm_projector_type {projector!r} is unknown; known: 'mlp2x_gelu'")


@pytest.mark.parametrize("tensor", ["model.embed_tokens.weight", "lm_head.weight"])
def test_another_vocabulary_in_the_weights(tensor: str, source: Path, capsys: Capture) -> None:
    _edit(_shard_of(source, tensor), lambda held: held.update({tensor: torch.zeros(401, 32, dtype=torch.float64)}))
    _refused(source, capsys, f"{tensor} has 401 rows, config.json and the tokenizer have 400 tokens")


def test_another_vocabulary_in_the_config(source: Path, capsys: Capture) -> None:
    _set(source, vocab_size=32000)
    _refused(source, capsys, "tokenizer.model has 400 tokens, config.json says vocab_size 32000")


def test_a_config_without_its_vocabulary(source: Path, capsys: Capture) -> None:
    path = source / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "vocab_size"}))
    _refused(source, capsys, "tokenizer.model has 400 tokens, config.json says vocab_size None")


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "unigram", "hard_vocab_limit": False},
        {"normalization_rule_name": "nmt_nfkc"},
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_tokenizer_with_other_settings_than_llamas(
    options: dict[str, Any], source: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "other").mkdir()
    made = train_tokenizer(tmp_path / "other", size=330, **options)
    (source / "tokenizer.model").write_bytes(made.read_bytes())
    import sentencepiece

    _set(source, vocab_size=sentencepiece.SentencePieceProcessor(model_file=str(made)).get_piece_size())
    _refused(source, capsys, "the converted tokenizer gives")


def test_a_tokenizer_whose_special_tokens_stand_elsewhere(source: Path, capsys: Capture) -> None:
    _set(source, eos_token_id=7)
    _refused(source, capsys, "tokenizer.model has eos at 2, config.json says 7")


@pytest.mark.parametrize("content", [None, b"", b"no model"])
def test_a_tokenizer_that_is_none(content: bytes | None, source: Path, capsys: Capture) -> None:
    path = source / "tokenizer.model"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    _refused(source, capsys, "tokenizer.model" if content is None else "not a SentencePiece model, or cut off")


class _Payload:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_in_it_does_not_run(zipped: bool, bin_source: Path, tmp_path: Path, capsys: Capture) -> None:
    trap = tmp_path / "ran"
    held = {"model.norm.weight": torch.ones(32), "more": _Payload(trap)}
    torch.save(held, bin_source / FIRST_BIN, _use_new_zipfile_serialization=zipped)
    _refused(bin_source, capsys, "holds something else than tensors, such as code, or is damaged; none of it was run")
    assert not trap.exists()
    torch.load(bin_source / FIRST_BIN, weights_only=False)
    assert trap.exists()  # so it would have


def test_too_little_disk(source: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destination, "free_bytes", lambda _: 1_000_000)
    _refused(source, capsys, "0.07 GB are to be written, 0.00 GB are free")


def test_an_unknown_tower(source: Path, tmp_path: Path, capsys: Capture) -> None:
    _set(source, mm_video_tower="someone/Their_Tower")
    _refused(source, capsys, "mm_video_tower someone/Their_Tower is unknown")
    tower = tmp_path / "tower.json"
    tower.write_text(json.dumps({"vision_config": {"num_attention_heads": 8, "hidden_act": "gelu", "hidden_size": 64}}))
    _refused(source, capsys, "hidden_size is 64, the weights", "--tower", str(tower))
    tower.write_text("{}")
    _refused(source, capsys, "not the configuration of a CLIP vision tower", "--tower", str(tower))
    _refused(source, capsys, "No such file", "--tower", str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    "tensor", ["model.layers.0.self_attn.q_norm.weight", "visual.proj", f"{IMAGE}encoder.layers.0.temporal_embedding"]
)
def test_an_unknown_tensor(tensor: str, source: Path, capsys: Capture) -> None:
    _edit(source / FIRST, lambda held: held.update({tensor: torch.zeros(1, 8, 32)}))
    _refused(source, capsys, f"the tensor {tensor} is unknown")


def test_a_tensor_that_is_missing(source: Path, capsys: Capture) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    _edit(_shard_of(source, name), lambda held: held.__delitem__(name))
    _refused(source, capsys, "1 tensors are missing, for language_model.model.layers.1.mlp.up_proj.weight first")


def test_weights_without_their_tower(source: Path, capsys: Capture) -> None:
    def without(held: dict[str, torch.Tensor]) -> None:
        for name in [name for name in held if "video_tower" in name]:
            del held[name]

    for path in source.glob("*.safetensors"):
        _edit(path, without)
    _refused(source, capsys, "its weights lack the video tower")


@pytest.mark.parametrize(
    "tensor",
    [
        "lm_head.weight",
        f"{VIDEO}embeddings.patch_embedding.weight",
        f"{VIDEO}embeddings.position_embedding.weight",
        f"{VIDEO}encoder.layers.0.mlp.fc1.weight",
        f"{VIDEO}encoder.layers.0.temporal_embedding",
    ],
)
def test_a_tensor_that_was_left_empty(tensor: str, source: Path, capsys: Capture) -> None:
    """As DeepSpeed's ZeRO-3 leaves those that it has not gathered."""
    _edit(_shard_of(source, tensor), lambda held: held.update({tensor: torch.zeros(0, dtype=torch.float64)}))
    _refused(source, capsys, f"{tensor} has shape [0]")


def test_a_tensor_of_another_shape(source: Path, capsys: Capture) -> None:
    _set(source, intermediate_size=64)
    _refused(source, capsys, "by config.json it is [")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "large"),
        ("num_attention_heads", 3),
        ("num_attention_heads", 0),
        ("max_position_embeddings", "far"),
        ("rope_scaling", {"type": "unheard of"}),
        ("hidden_act", "unheard of"),
        ("mm_vision_select_layer", -99),
        ("mm_vision_select_feature", "all"),
        ("mm_video_tower", None),
    ],
)
def test_settings_of_which_there_is_no_model(key: str, value: Any, source: Path, capsys: Capture) -> None:
    _set(source, **{key: value})
    _refused(source, capsys, "source/config.json: ")


@pytest.mark.parametrize("key", ["mm_use_x_start_end", "mm_use_x_patch_token"])
def test_tokens_around_a_video(key: str, source: Path, capsys: Capture) -> None:
    _set(source, **{key: True})
    _refused(source, capsys, f"{key} is true")


def test_an_adapter_and_a_quantised_model(source: Path, capsys: Capture) -> None:
    _set(source, quantization_config={"bits": 4})
    _refused(source, capsys, "quantised weights are not converted")
    (source / "adapter_config.json").write_text("{}")
    _refused(source, capsys, "has no full weights (adapter_config.json: LoRA or a part)")


def test_a_model_that_is_converted_already_or_another(source: Path, capsys: Capture) -> None:
    _set(source, architectures=["LlavaForConditionalGeneration"], model_type="llava")
    _refused(source, capsys, "architecture 'LlavaForConditionalGeneration' is not in the original layout")
    _set(source, architectures=["VideoLlavaForConditionalGeneration"])
    _refused(source, capsys, "is converted already")
    (source / "config.json").unlink()
    _refused(source, capsys, "no config.json, so no model lies there")


def test_a_destination_that_exists(source: Path, capsys: Capture) -> None:
    taken = source.parent / "policy"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    _refused(source, capsys, "policy: exists already")
    assert [path.name for path in taken.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("kind", ["link", "mount"])
def test_a_destination_that_no_finished_folder_can_replace(
    kind: str, source: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source.parent / "disk").mkdir()
    if kind == "link":
        (source.parent / "policy").symlink_to(source.parent / "disk")
    else:
        (source.parent / "policy").mkdir()
        monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "policy")
    _refused(source, capsys, "policy: is a link or a mount point; name a folder in it")


def test_a_hub_is_no_destination(source: Path, capsys: Capture) -> None:
    assert main(["models", "convert", str(source), "hf://org/policy"]) == 2
    assert "a hub is only read" in capsys.readouterr().err
