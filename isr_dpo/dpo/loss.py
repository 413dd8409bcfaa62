"""The DPO objective, as a pure function (section 3.1; Rafailov et al. 2023, eq. 7)."""

from __future__ import annotations

from collections.abc import Sequence
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


def response_logps(logits: Tensor, labels: Tensor, lengths: Sequence[int]) -> Tensor:
    """Summed log-probability (nats, at least fp32) of each response [len(lengths)].

    Args: `logits` [n, V] of the positions that predict response tokens; `labels` [n] those tokens; `lengths` how many
    of them belong to each response, in order.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    logps = -F.cross_entropy(wide, labels, reduction="none")  # [n]
    return torch.stack([response.sum() for response in torch.split(logps, list(lengths))])
