from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from isr_dpo import models
from isr_dpo.dpo import floor
from isr_dpo.dpo.floor import Lengths, Peak, Shape
from tests.tiny import make_policy

# Vicuna-7B: 32 layers of four 4096 x 4096 and three 4096 x 11008 matrices; 2048 video tokens and 108 of text.
SEVEN_B = Shape(weights=32 * (4 * 4096**2 + 3 * 4096 * 11008), trained=0, layers=32, width=4096)
SEVEN_B = SEVEN_B._replace(trained=SEVEN_B.weights)
PAIR = Lengths(prompt=2156, chosen=120, rejected=120)
# CLIP-L/14 on 8 frames of 257 tokens that all see each other: 24 layers of 12 x 1024^2 weights.
TOWER = 8 * (2 * 24 * 12 * 1024**2 * 257 + 4 * 1024 * 24 * 257**2)


def test_attention_counts_the_keys_that_each_query_sees() -> None:
    shape = Shape(weights=0, trained=0, layers=3, width=5)
    seen = sum(position + 1 for position in range(7, 11))  # the last 4 of 11: 8 + 9 + 10 + 11
    assert floor.attention(shape, 4, 11) == 4 * 5 * 3 * seen
    assert floor.attention(shape, 11, 11) == 4 * 5 * 3 * 66


def test_a_shared_row_costs_what_a_row_and_the_other_response_cost() -> None:
    shape = Shape(weights=1000, trained=1000, layers=2, width=10)
    pair = Lengths(prompt=20, chosen=3, rejected=5)
    both = floor.linear(shape, 23) + floor.linear(shape, 25) + 80 * (23 * 24 / 2) + 80 * (25 * 26 / 2)
    assert floor.conventional_forward(shape, pair) == both
    # What is saved is the second pass of the prompt: 20 tokens, their attention among themselves.
    assert floor.shared_forward(shape, pair) == both - floor.linear(shape, 20) - 80 * (20 * 21 / 2)


def test_video_llava_7b_saves_what_the_design_says() -> None:
    assert (2 * (PAIR.prompt + PAIR.chosen), PAIR.tokens) == (4552, 2396)
    assert round(4552 / 2396, 2) == 1.90
    once = floor.pair_flops(SEVEN_B, PAIR, epochs=1, vision=TOWER)
    thrice = floor.pair_flops(SEVEN_B, PAIR, epochs=3, vision=TOWER)
    assert once.conventional / once.shared == pytest.approx(2.41, abs=0.005)
    assert thrice.conventional / thrice.shared == pytest.approx(2.89, abs=0.005)
    # 17,000 pairs a round, nine rounds, on A100s: the floor's share that training has of 32 GPU-hours.
    assert once.shared * 17_000 * 9 / 312e12 / 3600 == pytest.approx(17.7, abs=0.1)


def test_speed_against_a_peak() -> None:
    forward = floor.shared_forward(SEVEN_B, PAIR)
    peak = Peak(100 * forward, "a round figure")
    fast = floor.speed(SEVEN_B, [PAIR] * 10, 0.5, peak=peak, ranks=2)
    assert fast.pairs_per_second == 20
    assert fast.tokens_per_second == 20 * 2396
    assert fast.mfu == pytest.approx(0.3)  # 30 passes of the 100 that 2 devices do in half a second
    assert fast.floor_ratio == pytest.approx(1 / 0.3)
    whole = floor.speed(SEVEN_B, [PAIR] * 10, 0.5, peak=peak, ranks=2, reference=[PAIR] * 10)
    assert whole.mfu == pytest.approx(0.3), "the reference pass trains nothing"
    assert whole.floor_ratio == pytest.approx(100 / 40)


def test_frozen_weights_need_no_gradient() -> None:
    lora = SEVEN_B._replace(trained=0)
    saved = floor.training_flops(SEVEN_B, [PAIR]) - floor.training_flops(lora, [PAIR])
    assert saved == floor.linear(SEVEN_B, PAIR.tokens)


def test_the_shape_of_a_policy_leaves_embeddings_and_head_out(tmp_path: Path) -> None:
    model = models.load(make_policy(tmp_path)).model
    layer = 4 * (96 * 96 + 96) + 3 * 96 * 256 + 2 * 96  # four projections with biases, three of the MLP, two norms
    assert Shape.of(model) == Shape(weights=4 * layer + 96, trained=4 * layer + 96, layers=4, width=96)
    model.requires_grad_(requires_grad=False)
    assert Shape.of(model).trained == 0


def test_the_width_is_that_of_the_queries() -> None:
    """Grouped keys and values, and heads that are not hidden size / heads wide."""
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=50,
    )
    shape = Shape.of(LlamaForCausalLM(config))
    assert shape.width == 64
    assert shape.weights == 2 * (2 * 32 * 64 + 2 * 32 * 32 + 3 * 32 * 48 + 2 * 32) + 32


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA A10G", None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_known_devices_by_name(name: str, tflops: float | None) -> None:
    found = floor.named_peak(name)
    assert found is None if tflops is None else found == pytest.approx(tflops * 1e12)


def test_a_cpu_is_measured_and_the_recipe_may_say_otherwise() -> None:
    cpu = torch.device("cpu")
    state = torch.get_rng_state()
    measured = floor.peak(cpu, torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    assert 1e8 < measured.flops < 1e15
    assert measured.source.startswith("measured: float32 matrix product on this cpu, ")
    assert floor.peak(cpu, torch.float32, override_tflops=0.25) == Peak(0.25e12, "train.peak_tflops")


def test_a_known_gpu_has_its_data_sheet_s_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100-SXM4-80GB")
    found = floor.peak(torch.device("cuda", 0), torch.bfloat16)
    assert found == Peak(312e12, "data sheet of NVIDIA A100-SXM4-80GB, dense bf16")
