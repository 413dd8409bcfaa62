"""The formulas against the tables of the reference: the paper's run, 17,000 pairs x 9, Video-LLaVA-7B on A100s."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from isr_dpo import models
from isr_dpo.config import Recipe
from isr_dpo.dpo.floor import Shape
from isr_dpo.estimate import memory
from isr_dpo.estimate.machines import device
from isr_dpo.estimate.shapes import TEXT_DEFAULTS, read_config, shape_of
from isr_dpo.estimate.work import FLOOR, VLLM, Asking, Texts, Work, pair_flops
from tests.families import FAMILIES, FORMS, TINY, build, clip

ARCHITECTURE = {
    "video_llava": "VideoLlavaForConditionalGeneration",
    "llava_next_video": "LlavaNextVideoForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}
SEVEN_B = replace(
    shape_of(
        {"architectures": [ARCHITECTURE["video_llava"]], "text_config": {"vocab_size": 32064}, "vision_config": {}},
        frames=8,
    ),
    tower_flops=0.0,  # the tables leave it out
)
QWEN = {
    "architectures": [ARCHITECTURE["qwen2_5_vl"]],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "vocab_size": 152064,
    "vision_config": {"depth": 32, "hidden_size": 1280, "patch_size": 14, "spatial_merge_size": 2},
}
A100 = device("A100-80G")
PAIRS = 17_000 * 9


def round_of(asking: Asking) -> Work:
    """A pair's answers, description and both judge orders, while its video is held."""
    asked = (asking.draws(), asking.description(previous=True), asking.verdicts(context=True, orders=2))
    return asking.video().plus(asked[0]).plus(asked[1]).plus(asked[2])


def test_prefill_a_pair_fused_by_stage_and_in_separate_calls() -> None:
    asking = Asking(SEVEN_B, Texts(), concurrency=128)
    fused = round_of(asking).flops
    by_stage = fused + 2 * asking.video().flops  # generate, retrospect and judge: each has computed the video
    assert fused / 1e12 == pytest.approx(44, abs=0.5)
    assert by_stage / 1e12 == pytest.approx(101, abs=0.5)
    forgetful = round_of(Asking(SEVEN_B, Texts(), concurrency=128, forgets=True)).flops
    separate = forgetful + 3 * asking.video().flops  # both draws, the description, and both orders: five videos
    assert separate / 1e12 == pytest.approx(162, abs=1.0)


@pytest.mark.parametrize(("epochs", "floor", "achievable"), [(1, 32, 56), (3, 58, 104)])
def test_gpu_hours_of_the_paper_s_run(epochs: int, floor: int, achievable: int) -> None:
    """The floor lets both draws read their prompt's keys and values together; an engine does not."""
    train = pair_flops(SEVEN_B, Texts(), epochs=epochs, checkpointing=False, lora=False) / A100.flops
    least = round_of(Asking(SEVEN_B, Texts(), concurrency=128, shared_reads=True)).seconds(A100, FLOOR) + train
    reached = round_of(Asking(SEVEN_B, Texts(), concurrency=128)).seconds(A100, VLLM) + train / 0.55
    assert round(least * PAIRS / 3600) == floor
    assert round(reached * PAIRS / 3600) == achievable


def test_answers_to_all_sets_at_every_policy_cost_as_much_as_the_reference_says() -> None:
    answer = Asking(SEVEN_B, Texts(), concurrency=64).answer().seconds(A100, VLLM)
    assert 30 <= answer * 10 * 5_000 * 9 / 3600 <= 35


def test_decoding_reads_keys_values_and_weights() -> None:
    """R = 2, P = 10 + 3 + 4 = 17, one byte of keys and values a token, 5 weights of 2 bytes for 4 texts."""
    small = replace(SEVEN_B, text=Shape(5, 5, 1, 1), kv_bytes=1, video_tokens=10)
    texts = Texts(system=3, question=4, response=2)
    assert Asking(small, texts, concurrency=4).draws().bytes == 2 * 2 * (17 + 1) + 4 * 5 * 2 / 4
    assert Asking(small, texts, concurrency=4, shared_reads=True).draws().bytes == 2 * (17 + 2) + 4 * 5 * 2 / 4


def test_training_passes_by_epochs_checkpointing_and_adapters() -> None:
    once = pair_flops(SEVEN_B, Texts(), epochs=1, checkpointing=False, lora=False)
    thrice = pair_flops(SEVEN_B, Texts(), epochs=3, checkpointing=False, lora=False)
    assert thrice / once == pytest.approx(10 / 4)
    assert pair_flops(SEVEN_B, Texts(), epochs=1, checkpointing=True, lora=False) / once == pytest.approx(5 / 4)
    tokens = 40 + 2056 + 60 + 2 * 120
    saved = once - pair_flops(SEVEN_B, Texts(), epochs=1, checkpointing=False, lora=True)
    assert saved == pytest.approx(2 * SEVEN_B.text.weights * tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_from_a_config_are_those_of_the_model(family: str, tmp_path: Path) -> None:
    policy = models.load(build(tmp_path / "model", family))
    found = shape_of(read_config(str(tmp_path / "model")), frames=8)
    assert found.text == Shape.of(policy.model)._replace(trained=found.text.weights)
    assert found.trained == sum(p.numel() for p in policy.trainable().values())


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_published_config_leaves_out_is_as_in_transformers(family: str) -> None:
    import transformers

    name = ARCHITECTURE[family].replace("ForConditionalGeneration", "Config")
    text = getattr(transformers, name)().text_config
    assert TEXT_DEFAULTS[family] == {key: getattr(text, key) for key in TEXT_DEFAULTS[family]}
    bare = shape_of({"architectures": [ARCHITECTURE[family]]}, frames=8)
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    assert bare.text.width == text.num_attention_heads * head
    assert bare.kv_bytes == 4 * text.num_hidden_layers * text.num_key_value_heads * head


def test_a_converted_video_llava_has_2048_tokens_one_tower_and_perhaps_attention_over_time() -> None:
    """CLIP-L/14: 24 layers of 1024. Each gets four matrices more, and each of 257 tokens looks at 8 frames."""
    bare = {"architectures": [ARCHITECTURE["video_llava"]]}
    whole = shape_of(bare, frames=8)
    patches = shape_of({**bare, "video_class_token": False, "image_tower": False}, frames=8)
    assert (whole.video_tokens, patches.video_tokens) == (2056, 2048)
    assert whole.weights - patches.weights == 24 * 12 * 1024**2
    assert patches.tower_flops == whole.tower_flops, "the class token is dropped after the tower"
    vision = {"add_time_attn": True, "num_frames": 8}
    over_time = shape_of({**bare, "video_class_token": False, "image_tower": False, "vision_config": vision}, frames=8)
    assert over_time.weights - patches.weights == 24 * 4 * 1024**2
    more = 8 * 257 * 24 * (2 * 4 * 1024**2 + 4 * 1024 * 8)
    assert over_time.tower_flops - patches.tower_flops == pytest.approx(more)


@pytest.mark.parametrize("form", ["video_llava", *FORMS])
def test_video_tokens_are_those_that_the_processor_makes(form: str, tmp_path: Path) -> None:
    folder = build(tmp_path / "model", form)
    family = models.family_of(folder)
    (ids,) = family.encode(family.load_processor(folder), ["<video>\n"], [clip(form, "v1")]).ids
    config = read_config(str(folder))
    assert shape_of(config, frames=TINY.frames).video_tokens == ids.count(config["video_token_index"])


def test_qwen_s_own_flat_config() -> None:
    """Qwen2.5-VL-7B as published; its card says 6.53 billion weights without embeddings, and 768 tokens two frames."""
    found = shape_of(QWEN, frames=16)
    assert found.text.weights / 1e9 == pytest.approx(6.53, abs=0.005)
    assert found.weights / 1e9 == pytest.approx(8.29, abs=0.05)
    assert found.video_tokens == 8 * 768
    assert found.kv_bytes == 28 * 2 * 4 * 128 * 2


def recipe(**train: object) -> Recipe:
    tree = {
        "name": "small",
        "model": {"start": "builtin:world", "registered_name": "m", "dtype": "bfloat16"},
        "data": {"train": "t", "sets": {"dev": "d"}},
        "engine": {"kind": "vllm"},
        "train": {"micro_batch_tokens": 2396, **train},
    }
    return Recipe.model_validate(tree)


def test_memory_of_training() -> None:
    """ZeRO-2 on 8 GPUs: the reference's 26 to 28 GB without activations."""
    pair = memory.training(recipe(), SEVEN_B, ranks=8)
    two = memory.training(recipe(micro_batch_tokens=2 * 2396), SEVEN_B, ranks=8)
    assert 26e9 < 2 * pair - two < 28.5e9
    assert (two - pair) / 2396 == pytest.approx(32 * (8 * 4096 + 4 * 11008) * 2.4, rel=1e-3)
    states = memory.training(recipe(micro_batch_tokens=1, zero_stage=0), SEVEN_B, ranks=8)
    assert states == pytest.approx(2 * SEVEN_B.weights + 16 * SEVEN_B.trained, rel=1e-3)
    assert memory.training(recipe(zero_stage=3), SEVEN_B, ranks=8) < pair
    assert memory.training(recipe(gradient_checkpointing=True), SEVEN_B, ranks=8) < pair
    assert memory.training(recipe(lora_rank=16), SEVEN_B, ranks=1) < pair
    qwen = shape_of(QWEN, frames=16)
    assert qwen.activations == 28 * (6 * 3584 + 2 * 512 + 4 * 18944)


@pytest.mark.parametrize(("inner", "keys"), [(1376, 4), (2706, 1)], ids=["llama", "qwen2"])
def test_what_autograd_keeps_of_a_token(inner: int, keys: int) -> None:
    """The 7B shapes at an eighth of their width, in bf16: bytes of all tensors kept for the backward pass but weights,
    of the second layer, from 32 to 64 tokens."""
    sizes = {"hidden_size": 512, "intermediate_size": inner, "num_attention_heads": 4, "num_key_value_heads": keys}
    kept = {(layers, tokens): _kept(layers, tokens, sizes) for layers in (1, 2) for tokens in (32, 64)}
    a_token = (kept[2, 64] - kept[2, 32] - kept[1, 64] + kept[1, 32]) / 32
    numbers = 6 * 512 + 2 * keys * 128 + 4 * inner
    assert a_token / numbers == pytest.approx(memory.ACTIVATION_BYTES, rel=0.08)


def _kept(layers: int, tokens: int, sizes: dict[str, int]) -> int:
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(num_hidden_layers=layers, vocab_size=10, attn_implementation="sdpa", **sizes)
    model = LlamaModel(config).to(torch.bfloat16)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, torch.Tensor] = {}  # kept alive, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    entering = torch.randn(1, tokens, sizes["hidden_size"], dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(inputs_embeds=entering, use_cache=False)
    assert out.last_hidden_state.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


def test_memory_of_an_engine_says_how_many_texts_it_writes_at_a_time() -> None:
    """0.9 of 80 GB, 14.7 of them weights and 4 activations: 53 GB for texts of 2,276 tokens at 0.5 MB."""
    room = memory.engine_room(recipe(), SEVEN_B, Texts(), memory=80e9)
    assert room.concurrency == pytest.approx(53.3e9 / (2276 * 524288), rel=0.02)
    small = memory.engine_room(recipe(), SEVEN_B, Texts(), memory=16e9)
    assert small.needed > 16e9
    assert small.concurrency == 1.0


def test_a_config_of_no_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(models.ModelError, match="LlamaForCausalLM is not supported; supported: VideoLlava"):
        read_config(str(tmp_path))
