"""The DPO objective, as a pure function (section 3.1; Rafailov et al. 2023, eq. 7)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class PairLoss(NamedTuple):
    """Per pair [B]: the loss, and the implicit rewards beta * log(policy / reference)."""

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor


def dpo_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> PairLoss:
    """-log sigmoid(beta * (log-ratio of chosen - log-ratio of rejected)).

    Args: summed log-probabilities of the responses (nats), each [B]; `beta` > 0 controls the deviation from the
    reference.
    """
    chosen_reward = beta * (policy_chosen - reference_chosen)  # [B]
    rejected_reward = beta * (policy_rejected - reference_rejected)  # [B]
    return PairLoss(-F.logsigmoid(chosen_reward - rejected_reward), chosen_reward.detach(), rejected_reward.detach())


def response_logps(logits: Tensor, ids: Tensor, response: Tensor) -> Tensor:
    """Summed log-probability (nats, at least fp32) of each row's response tokens [B].

    Args: `logits` [B, T, V], of which position t predicts token t + 1; `ids` [B, T]; `response` [B, T], true where a
    token belongs to the response.
    """
    logits = logits[:, :-1] if logits.dtype == torch.float64 else logits[:, :-1].float()
    logps = logits.log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)  # [B, T-1]
    return (logps * response[:, 1:]).sum(-1)
