"""Our side of the DPO benchmark: the product's own reference pass and training loop."""

from __future__ import annotations

from typing import Any

from tests.bench.dpo_child import BETA, LEARNING_RATE, MAX_GRAD_NORM, STEPS, Channel, Job, on_gpu
from tests.bench.dpo_setup import clip, read_pairs, read_sizes


class _Stopped(Exception):
    """No more steps are asked for."""


def run(job: Job, channel: Channel) -> None:
    from isr_dpo import models, prompts
    from isr_dpo.dpo import plain, reference
    from isr_dpo.dpo.backend import BackendSettings
    from isr_dpo.dpo.batch import Pairs
    from isr_dpo.dpo.features import Features
    from isr_dpo.dpo.floor import Peak, Shape
    from isr_dpo.dpo.forward import SharedPrefix
    from isr_dpo.dpo.trainer import Entry, Hardware, Round, train

    sizes, rows = read_sizes(job.folder), read_pairs(job.folder)
    dtype = "bfloat16" if on_gpu() else "float32"
    policy = models.load(job.folder / "policy", dtype=dtype, device="auto", cpu_threads=job.threads)
    trained = policy.trainable()
    for name, parameter in policy.model.named_parameters():
        parameter.requires_grad_(name in trained)
    features = Features(job.folder / f"features-{job.checkpointing}")
    module = SharedPrefix(policy, features=features, checkpointing=job.checkpointing)
    settings = BackendSettings(dtype=dtype, max_grad_norm=MAX_GRAD_NORM)
    backend = plain.open(module, trained, settings, states=lambda name: None)

    def pairs_with(kept: Features | None) -> Pairs:
        template = prompts.load("lmm").answer
        return Pairs(rows, policy, template=template, frames=lambda video: clip(video, sizes), features=kept)

    pairs, longest = pairs_with(features), max(map(len, _tokens(pairs_with(None))))
    budget = longest * job.micro_batch_pairs

    def once() -> reference.Reference:
        """What a round does once a pair: decoded frames into the tower, features onto the disk, the reference pass."""
        return reference.compute(backend, pairs_with(None), budget_tokens=budget, max_bad_fraction=0.0)

    def on_step(entry: Entry) -> None:
        values = {name: entry[name] for name in ("loss", "chosen_logp", "rejected_logp", "margin")}
        channel.done(once_seconds=marks.pop(), **values)
        _await(channel)
        once()
        marks.append(channel.elapsed())

    channel.ready(**_facts(policy, pairs_with(None)))
    _await(channel)
    known, marks = once(), [channel.elapsed()]
    try:
        train(
            backend,
            pairs,
            known,
            settings=_train_settings(len(rows), budget),
            round_=Round(index=1, epochs=STEPS, seed=0),
            hardware=Hardware(Shape.of(policy.model), Peak(1e12, "not used")),
            on_step=on_step,
        )
    except _Stopped:
        backend.close()


def _await(channel: Channel) -> None:
    if not channel.wait():
        raise _Stopped


def _train_settings(pairs: int, budget: int) -> Any:
    from isr_dpo.config import Train

    return Train(
        beta=BETA,
        learning_rate=LEARNING_RATE,
        warmup_fraction=0.0,
        batch_pairs=pairs,
        micro_batch_tokens=budget,
        max_grad_norm=MAX_GRAD_NORM,
    )


def _tokens(pairs: Any) -> list[Any]:
    return [pairs.load(index)[0] for index in range(len(pairs))]


def _facts(policy: Any, pairs: Any) -> dict[str, Any]:
    """The lengths of the pairs, and what trains."""
    tokens = _tokens(pairs)
    video = policy.model.config.video_token_id
    lengths = [[len(t.prompt), len(t.chosen), len(t.rejected)] for t in tokens]
    prompt, chosen, rejected = lengths[0]
    return {
        "video_tokens": int((tokens[0].prompt == video).sum()),
        "tokens": [prompt + chosen, prompt + rejected],
        "response_tokens": [chosen, rejected],
        "trained_parameters": sum(p.numel() for p in policy.trainable().values()),
        "lengths": lengths,
    }
