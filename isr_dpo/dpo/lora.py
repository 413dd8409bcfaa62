"""Low-rank adapters instead of full parameters, for small cards: peft's, merged into the weights after each round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from isr_dpo.dpo.backend import State
from isr_dpo.errors import ModelError
from isr_dpo.models import Policy

_BASE = ".base_layer"


def inject(policy: Policy, *, rank: int, alpha: float) -> dict[str, nn.Parameter]:
    """Puts adapters (fp32, fresh: they change nothing yet) beside every linear layer of the language model's blocks,
    and gives them by name. Needs the `peft` package."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ModelError(f"train.lora_rank needs the package peft ({error}): install isr-dpo[train]") from error

    linear = [
        name
        for name, module in policy.model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(policy.family.LANGUAGE) and ".layers." in name
    ]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=linear,
    )
    inject_adapter_in_model(config, policy.model)
    return {name: p for name, p in policy.model.named_parameters() if ".lora_" in name}


def merged(
    weights: Mapping[str, nn.Parameter],
    states: Mapping[str, State],
    originals: Mapping[str, Tensor],
    *,
    rank: int,
    alpha: float,
) -> Iterator[tuple[str, Tensor]]:
    """The language model's weights (fp32, CPU) under the names that they have without adapters: W + alpha / rank B A.

    Args: `weights` of the language model with its adapters, by name; `states` of the adapters; `originals`: weights
    more exact than the module's own, by their plain name.
    """
    for name, parameter in weights.items():
        if ".lora_" in name:
            continue
        plain = name.replace(_BASE, "")
        weight = originals[plain] if plain in originals else parameter.detach().float().cpu()
        stem = name.removesuffix(f"{_BASE}.weight")
        factors = [states.get(f"{stem}.lora_{side}.default.weight") for side in ("B", "A")]
        if factors[0] is not None and factors[1] is not None and name != stem:
            weight = weight + alpha / rank * (factors[0].master @ factors[1].master)
        yield plain, weight
