"""The DPO objective against worked arithmetic."""

from __future__ import annotations

import math

import pytest
import torch

from isr_dpo.dpo.loss import dpo_loss, response_logps


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_worked_example() -> None:
    # beta 0.1; log-ratios: chosen -10 - -12 = 2, rejected -11 - -8 = -3; rewards 0.2 and -0.3; margin 0.5
    result = dpo_loss(doubles(-10), doubles(-11), doubles(-12), doubles(-8), beta=0.1)
    assert result.loss.item() == pytest.approx(math.log(1 + math.exp(-0.5)), abs=1e-12)
    assert result.chosen_reward.item() == pytest.approx(0.2, abs=1e-12)
    assert result.rejected_reward.item() == pytest.approx(-0.3, abs=1e-12)


def test_at_the_reference_the_loss_is_log_2() -> None:
    logps = doubles(-3, -700)
    assert dpo_loss(logps, logps - 1, logps, logps - 1, beta=0.3).loss.tolist() == pytest.approx([math.log(2)] * 2)


def test_gradient_is_beta_times_the_sigmoid_of_the_wrong_margin() -> None:
    chosen = doubles(-5).requires_grad_()
    rejected = doubles(-4).requires_grad_()
    dpo_loss(chosen, rejected, doubles(-5), doubles(-5), beta=0.2).loss.sum().backward()
    weight = 0.2 / (1 + math.exp(0.2 * (0 - 1)))  # sigmoid(rejected reward - chosen reward) = sigmoid(0.2)
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(-weight, abs=1e-12)
    assert rejected.grad.item() == pytest.approx(weight, abs=1e-12)


def test_extreme_margins_stay_finite() -> None:
    far = dpo_loss(doubles(-1e5), doubles(0), doubles(0), doubles(-1e5), beta=1.0).loss
    assert far.item() == pytest.approx(2e5)


def test_logps_sum_over_each_response() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 7, dtype=torch.float64)
    labels = torch.tensor([3, 0, 6, 6, 1])
    each = []
    for row, label in enumerate(labels.tolist()):
        scores = [math.exp(value) for value in logits[row].tolist()]
        each.append(math.log(scores[label] / sum(scores)))
    expected = [each[0] + each[1], each[2], each[3] + each[4]]
    assert response_logps(logits, labels, [2, 1, 2]).tolist() == pytest.approx(expected, abs=1e-12)
