from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from isr_dpo import models
from isr_dpo.dpo import masters
from isr_dpo.dpo.masters import Masters, check, export, stored_dtype, update_kept
from isr_dpo.errors import CorruptOutput, StaleOutput
from tests.tiny import make_policy

BF16 = torch.bfloat16


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("start"))


def trained(start: Path, *, by: float = 1e-3) -> dict[str, Tensor]:
    """The start's trainable weights, moved a little at random."""
    draw = torch.Generator().manual_seed(1)
    parameters = models.load(start).trainable()
    return {n: p.detach() + by * torch.randn(p.shape, generator=draw) for n, p in parameters.items()}


def write(folder: Path, tensors: dict[str, Tensor], **options: int) -> Masters:
    masters.write(folder, iter(tensors.items()), **options)
    return Masters(folder)


def test_what_is_written_is_read_in_order_and_shards_stay_small(tmp_path: Path) -> None:
    tensors = {f"layer.{i}": torch.randn(10, i + 1) for i in range(6)}  # 40 bytes a column
    read = write(tmp_path, tensors, max_shard_bytes=300)
    assert list(read) == list(tensors)
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert [list(load_file(shard)) for shard in shards] == [
        ["layer.0", "layer.1", "layer.2"],  # 240 bytes; 160 more would be too many
        ["layer.3"],
        ["layer.4"],
        ["layer.5"],
    ]


def test_a_tensor_larger_than_a_shard_has_one_of_its_own(tmp_path: Path) -> None:
    read = write(tmp_path, {"a": torch.ones(2), "b": torch.ones(100), "c": torch.ones(2)}, max_shard_bytes=16)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert torch.equal(read["b"], torch.ones(100))


def test_several_writers_make_one_set(tmp_path: Path) -> None:
    write(tmp_path, {"a": torch.ones(2), "b": torch.zeros(2)}, writer=0)
    read = write(tmp_path, {"c": torch.full((3,), 2.0)}, writer=1)
    assert {name: tensor.sum().item() for name, tensor in read.items()} == {"a": 2.0, "b": 0.0, "c": 6.0}

    with pytest.raises(CorruptOutput, match=r"masters-02.index.json: b stands in another index"):
        write(tmp_path, {"b": torch.zeros(2)}, writer=2)


def test_masters_are_fp32_and_written_once(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"a is torch\.bfloat16"):
        masters.write(tmp_path, [("a", torch.ones(2, dtype=BF16))])
    for size in (1, 1000):
        with pytest.raises(AssertionError, match="a is written twice"):
            masters.write(tmp_path, [("a", torch.ones(2)), ("a", torch.ones(2))], max_shard_bytes=size)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CorruptOutput, match="no masters lie there"):
        Masters(tmp_path)
    read = write(tmp_path, {"a": torch.ones(2), "b": torch.ones(2)}, max_shard_bytes=8)
    (tmp_path / "masters-00-00002.safetensors").write_bytes(b"torn")
    assert torch.equal(read["a"], torch.ones(2))
    with pytest.raises(CorruptOutput, match=r"masters-00-00002.safetensors: b cannot be read"):
        read["b"]
    (tmp_path / "masters-00-00001.safetensors").unlink()
    with pytest.raises(CorruptOutput, match=r"masters-00-00001.safetensors: a cannot be read"):
        read["a"]
    (tmp_path / "masters-00.index.json").write_text("[]")
    with pytest.raises(CorruptOutput, match="not an index of masters"):
        Masters(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_an_export_holds_the_masters_cast_and_the_rest_of_the_start(
    start: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    tensors = trained(start)
    read = write(tmp_path / "masters", tensors)
    export(start, read, tmp_path / "policy", dtype=dtype)

    assert stored_dtype(tmp_path / "policy") == dtype
    assert all(t.dtype == dtype for t in load_file(tmp_path / "policy" / "model.safetensors").values())
    before = dict(models.load(start).model.named_parameters())
    policy = models.load(tmp_path / "policy")
    assert policy.chat("what?")
    frozen = 0
    for name, weight in policy.model.named_parameters():
        expected = tensors[name] if name in tensors else before[name].detach()
        frozen += name not in tensors
        assert torch.equal(weight, expected.to(dtype).float()), name
    assert frozen > 10
    check(policy.model, read, dtype=dtype)
    check(models.load(tmp_path / "policy", dtype=str(dtype).removeprefix("torch.")).model, read, dtype=dtype)


def test_masters_of_another_policy_are_refused_by_name(start: Path, tmp_path: Path) -> None:
    tensors = trained(start)
    export(start, write(tmp_path / "masters", tensors), tmp_path / "policy", dtype=BF16)
    model = models.load(tmp_path / "policy").model

    name = next(n for n in tensors if n.endswith("layers.2.mlp.up_proj.weight"))
    other = dict(tensors)
    other[name] = tensors[name].clone()
    other[name][3, 5] += 0.1
    with pytest.raises(StaleOutput, match=rf"{name} is not the policy's, 1 of {tensors[name].numel()} values"):
        check(model, write(tmp_path / "other", other), dtype=BF16)

    other[name] = tensors[name] * (1 + 2**-20)  # within half a bf16 step: the same policy, as far as anyone can tell
    nudged = other[name].to(BF16) != tensors[name].to(BF16)
    other[name][nudged] = tensors[name][nudged]
    check(model, write(tmp_path / "near", other), dtype=BF16)


def test_masters_of_another_model_do_not_fit(start: Path, tmp_path: Path) -> None:
    model = models.load(start).model
    name = next(iter(models.load(start).trainable()))
    stranger = write(tmp_path / "a", {"model.nothing": torch.ones(2)})
    with pytest.raises(CorruptOutput, match=r"model.nothing has shape \(2,\), the policy has no such parameter"):
        check(model, stranger, dtype=BF16)
    with pytest.raises(CorruptOutput, match="no such parameter"):
        export(start, stranger, tmp_path / "out", dtype=BF16)
    with pytest.raises(CorruptOutput, match=rf"{name} has shape \(2,\), the policy has shape \("):
        check(model, write(tmp_path / "b", {name: torch.ones(2)}), dtype=BF16)


def test_a_config_without_a_dtype_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16"}))
    assert stored_dtype(tmp_path) == BF16
    (tmp_path / "config.json").write_text(json.dumps({"dtype": "Tensor"}))
    with pytest.raises(CorruptOutput, match="dtype 'Tensor'"):
        stored_dtype(tmp_path)


def test_the_share_of_an_update_that_bf16_holds() -> None:
    """Above 1 a bf16 step is 1/128. Updates in steps: 1 kept whole; 0.25 lost; 0.75 exported as 1, no more than itself
    kept; 1.25 exported as 1; -0.25 from the rounding edge exported as a whole step the same way."""
    step = 1 / 128
    before = torch.tensor([1.0, 1.0, 1.0, 1.0, 1 + 0.625 * step])
    moves = torch.tensor([1.0, 0.25, 0.75, 1.25, -0.25])
    kept = [1.0, 0.0, 0.75, 1.0, 0.25]
    expected = math.sqrt(sum(k * k for k in kept) / sum(m * m for m in moves.tolist()))
    assert update_kept({"w": before}, {"w": before + moves * step}, dtype=BF16) == pytest.approx(expected, rel=1e-12)
    assert update_kept({"w": before}, {"w": before + moves * step}, dtype=torch.float32) == 1.0


def test_the_share_is_of_all_tensors_together_however_long() -> None:
    size = masters._CHUNK + 3
    before = {"kept": torch.ones(size), "lost": torch.ones(size), "still": torch.ones(2)}
    after = {"kept": torch.full((size,), 1.5), "lost": torch.full((size,), 1 + 2**-10), "still": torch.ones(2)}
    expected = math.sqrt(0.25 / (0.25 + 2**-20))
    assert update_kept(before, after, dtype=BF16) == pytest.approx(expected, rel=1e-12)


def test_no_update_at_all_is_not_a_kept_one() -> None:
    assert update_kept({"w": torch.ones(4)}, {"w": torch.ones(4)}, dtype=BF16) == 0.0


def test_an_update_is_compared_with_its_own_start() -> None:
    with pytest.raises(ValueError, match=r"w: \(4,\) after training, None before"):
        update_kept({}, {"w": torch.ones(4)}, dtype=BF16)
    with pytest.raises(ValueError, match=r"w: \(4,\) after training, \(2,\) before"):
        update_kept({"w": torch.ones(2)}, {"w": torch.ones(4)}, dtype=BF16)


def steps(weights: dict[str, Tensor], number: int) -> None:
    """`number` updates of 5e-7, each weight in a direction of its own: Adam's steps once its gradients have settled."""
    for name, weight in weights.items():
        draw = torch.Generator().manual_seed(len(name))
        direction = torch.randn(weight.shape, generator=draw).sign()
        for _ in range(number):
            weight += 5e-7 * direction


def rounds(start: Path, folder: Path, *, carry: Callable[[Path, Masters], dict[str, Tensor]]) -> Masters:
    """The masters after three rounds of 60 steps; between rounds only what `carry` takes of policy and masters goes
    on."""
    policy = models.load(start)
    weights = {name: p.detach().clone() for name, p in policy.trainable().items() if "mlp" in name}
    for number in range(3):
        steps(weights, 60)
        held = write(folder / f"masters-{number}", weights)
        exported = folder / f"policy-{number}"
        export(start, held, exported, dtype=BF16)
        weights = carry(exported, held)
    return held


def test_rounds_lose_their_updates_through_bf16_and_none_through_masters(start: Path, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(2)
    policy = models.load(start)
    with torch.no_grad():  # weights of the size that a 7B model has
        for parameter in policy.trainable().values():
            parameter.copy_((0.02 * torch.randn(parameter.shape, generator=draw)).to(BF16))
    policy.model.save_pretrained(tmp_path / "start")
    policy.processor.save_pretrained(tmp_path / "start")
    before = {name: p.detach() for name, p in policy.trainable().items() if "mlp" in name}

    def from_export(exported: Path, held: Masters) -> dict[str, Tensor]:
        weights = models.load(exported).trainable()
        return {name: weights[name].detach().clone() for name in held}

    def from_masters(exported: Path, held: Masters) -> dict[str, Tensor]:
        check(models.load(exported).model, held, dtype=stored_dtype(exported))
        return dict(held)

    def moved(after: Mapping[str, Tensor]) -> float:
        """Mean distance of a weight from the start."""
        return float(torch.cat([(after[name] - before[name]).abs().flatten() for name in before]).mean())

    undisturbed = {name: weight.clone() for name, weight in before.items()}
    steps(undisturbed, 180)
    lossless = rounds(tmp_path / "start", tmp_path / "with", carry=from_masters)
    lossy = rounds(tmp_path / "start", tmp_path / "without", carry=from_export)
    assert all(torch.equal(lossless[name], weight) for name, weight in undisturbed.items())
    assert moved(lossy) < 0.6 * moved(lossless)
    # What a round's export holds of its update foretells the loss; what has added up to whole bf16 steps is held.
    first = update_kept(before, Masters(tmp_path / "with" / "masters-0"), dtype=BF16)
    assert 0.4 < first < 0.7
    assert update_kept(before, lossless, dtype=BF16) > 0.8
