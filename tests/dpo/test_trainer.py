"""The trainer: agrees with twenty lines of PyTorch, repeats itself bit for bit, stops by name."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from isr_dpo import models
from isr_dpo.config import Train
from isr_dpo.dpo import plain, reference
from isr_dpo.dpo.backend import Backend, BackendSettings
from isr_dpo.dpo.batch import Pairs
from isr_dpo.dpo.floor import Peak, Shape
from isr_dpo.dpo.forward import SharedPrefix
from isr_dpo.dpo.plan import optimiser_batches
from isr_dpo.dpo.reference import Reference
from isr_dpo.dpo.trainer import Entry, Hardware, Round, metrics, train
from isr_dpo.errors import ModelError
from isr_dpo.models import Policy
from tests.dpo.ordinary import MORE, TEMPLATE, loop
from tests.tiny import clip, make_policy

SETTINGS = Train(learning_rate=1e-3, beta=0.2, batch_pairs=2, micro_batch_tokens=150, warmup_fraction=0.25)
ROUND = Round(index=1, epochs=2, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("tiny"))


class Trained:
    """A policy made ready for training, and its log."""

    def __init__(self, folder: Path, *, dtype: str = "float32", projector: bool = False) -> None:
        self.policy: Policy = models.load(folder, dtype=dtype)
        parameters = self.policy.trainable(projector=projector)
        for name, parameter in self.policy.model.named_parameters():
            parameter.requires_grad_(name in parameters)
        module = SharedPrefix(self.policy)
        self.backend: Backend = plain.open(module, parameters, BackendSettings(), states=lambda _: None)
        self.pairs = Pairs(MORE, self.policy, template=TEMPLATE, frames=clip)
        self.reference: Reference = reference.compute(self.backend, self.pairs, budget_tokens=300, max_bad_fraction=0)
        self.log: list[Entry] = []

    def run(self, settings: Train = SETTINGS) -> Trained:
        train(
            self.backend,
            self.pairs,
            self.reference,
            settings=settings,
            round_=ROUND,
            hardware=Hardware(Shape.of(self.policy.model), Peak(1e9, "stated")),
            on_step=self.log.append,
        )
        return self


def test_training_equals_a_plain_loop_of_ordinary_passes(folder: Path) -> None:
    ours = Trained(folder, dtype="float64").run()
    policy = models.load(folder, dtype="float64")
    batches = optimiser_batches(range(len(MORE)), batch_pairs=2, epochs=2, seed=3, round_index=1)
    losses, _ = loop(policy, MORE, batches, SETTINGS, clip)
    assert len(losses) == 10
    assert [entry["loss"] for entry in ours.log] == pytest.approx(losses, abs=1e-6)  # transformers norms in fp32
    for name, weight in policy.model.state_dict().items():
        assert torch.allclose(ours.policy.model.state_dict()[name], weight, atol=1e-5), name


def test_the_first_loss_is_log_2_exactly_at_the_reference(folder: Path) -> None:
    log = Trained(folder).run(SETTINGS.model_copy(update={"micro_batch_tokens": 100_000})).log
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert log[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert log[-1]["loss"] < log[0]["loss"]


@pytest.mark.parametrize("projector", [False, True])
def test_only_what_the_recipe_trains_changes(folder: Path, projector: bool) -> None:
    before = models.load(folder).model.state_dict()
    after = Trained(folder, projector=projector).run().policy.model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert any(name.startswith("model.language_model.") for name in changed)
    assert any("projector" in name for name in changed) is projector
    assert not any("tower" in name for name in changed)


def test_the_same_pairs_give_the_same_weights_bit_for_bit(folder: Path) -> None:
    first, second = (Trained(folder).run().policy.model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_log_and_its_summary_say_what_happened(folder: Path) -> None:
    log = Trained(folder).run().log
    assert [entry["step"] for entry in log] == list(range(1, 11))
    assert [entry["pairs"] for entry in log] == [2, 2, 2, 2, 1] * 2
    rates = [entry["learning_rate"] / 1e-3 for entry in log]
    assert rates == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7])
    summary = metrics(log)
    assert summary["loss_first"] == log[0]["loss"]
    assert summary["margin"] == pytest.approx((log[-1]["margin"] + log[-2]["margin"]) / 2)
    assert summary["pairs_per_second"] == pytest.approx(18 / sum(entry["seconds"] for entry in log))
    assert summary["mfu"] > 0
    assert summary["floor_ratio"] == pytest.approx(1 / summary["mfu"])


def test_a_loss_that_is_not_finite_stops_the_round_by_name(folder: Path) -> None:
    broken = Trained(folder)
    broken.reference = replace(broken.reference, chosen=broken.reference.chosen * math.nan)
    with pytest.raises(ModelError, match=r"round 1, step 1: the loss is nan; lower train.learning_rate \(0.001\)"):
        broken.run()


def test_a_gradient_that_is_not_finite_stops_the_round_by_name(folder: Path) -> None:
    broken = Trained(folder)
    next(iter(broken.policy.trainable().values())).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(ModelError, match=r"round 1, step 1: the gradient norm is (inf|nan)"):
        broken.run()
