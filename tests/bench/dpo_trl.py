"""TRL's side of the DPO benchmark: DPOTrainer with its defaults, its own loop, a frame an image."""

from __future__ import annotations

from typing import Any

from tests.bench.dpo_child import BETA, LEARNING_RATE, MAX_GRAD_NORM, STEPS, Channel, Job, on_gpu
from tests.bench.dpo_setup import IMAGE, VIDEO, clip, read_pairs, read_sizes

NOT_TRAINED = ("model.image_tower.", "model.video_tower.", "model.multi_modal_projector.")


def run(job: Job, channel: Channel) -> None:
    import torch
    from transformers import TrainerCallback, VideoLlavaForConditionalGeneration, VideoLlavaProcessor
    from trl import DPOTrainer

    torch.set_num_threads(job.threads)
    model = VideoLlavaForConditionalGeneration.from_pretrained(job.folder / "policy", dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(NOT_TRAINED))
    processor = VideoLlavaProcessor.from_pretrained(job.folder / "policy")
    losses: list[torch.Tensor] = []

    class Trainer(DPOTrainer):  # type: ignore[misc]
        """Keeps the loss of each micro-batch, to be compared."""

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            losses.append(loss.detach())
            return loss

    class Pace(TrainerCallback):  # type: ignore[misc]
        """Stops between optimiser steps until the parent asks for the next one."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            channel.ready(**_facts(trainer))
            control.should_training_stop = not channel.wait()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            channel.done(loss=float(torch.stack(losses).mean()), **_measured(trainer))
            losses.clear()
            control.should_training_stop = not channel.wait()

    trainer = Trainer(
        model=model,
        args=_config(job),
        train_dataset=_dataset(job, processor),
        processing_class=processor,
        callbacks=[Pace()],
    )
    trainer.train()


def _config(job: Job) -> Any:
    """TRL's defaults but for the batch size, precision on a CPU, and the length limit, which would cut the video;
    logging and saving are off. A step's batch is all pairs, an epoch is a step."""
    from trl import DPOConfig

    gpu = on_gpu()
    pairs = read_sizes(job.folder).pairs
    assert pairs % job.micro_batch_pairs == 0
    config = DPOConfig(
        output_dir=str(job.folder / "trl"),
        per_device_train_batch_size=job.micro_batch_pairs,
        gradient_accumulation_steps=pairs // job.micro_batch_pairs,
        num_train_epochs=STEPS,
        max_length=None,
        **({} if gpu else {"bf16": False, "use_cpu": True}),
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    assert config.gradient_checkpointing == job.checkpointing, "TRL's default is with gradient checkpointing"
    assert (config.beta, config.max_grad_norm, config.learning_rate) == (BETA, MAX_GRAD_NORM, LEARNING_RATE)
    return config


def _dataset(job: Job, processor: Any) -> Any:
    from datasets import Dataset
    from PIL import Image

    sizes = read_sizes(job.folder)
    begin, end = processor.tokenizer.bos_token, processor.tokenizer.eos_token
    rows = []
    for pair in read_pairs(job.folder):
        content = [{"type": "video"}, {"type": "text", "text": pair.prompt}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        prompt = prompt.replace(VIDEO, IMAGE * sizes.shape.frames)
        rows.append(
            {
                "prompt": begin + prompt,  # TRL's collator adds no special tokens
                "chosen": pair.chosen + end,
                "rejected": pair.rejected + end,
                "images": [Image.fromarray(frame) for frame in clip(pair.video, sizes)],
            }
        )
    return Dataset.from_list(rows)


def _facts(trainer: Any) -> dict[str, Any]:
    """The lengths of what the trainer gets, read off a batch of its own collator."""
    batch = trainer.data_collator([dict(trainer.train_dataset[0])])
    token = trainer.processing_class.image_token_id
    return {
        "video_tokens": int((batch["input_ids"][0] == token).sum()),
        "tokens": [int(n) for n in batch["attention_mask"].sum(1)],
        "response_tokens": [int(n) for n in batch["completion_mask"].sum(1)],
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "gradient_checkpointing": bool(trainer.model.is_gradient_checkpointing),
    }


def _measured(trainer: Any) -> dict[str, float]:
    """Log-probs of the step, the means of its micro-batches."""
    metrics = trainer._metrics["train"]
    means = {
        name: sum(metrics[key]) / len(metrics[key])
        for name, key in (
            ("chosen_logp", "logps/chosen"), ("rejected_logp", "logps/rejected"), ("margin", "rewards/margins"),
        )
    }  # fmt: skip
    metrics.clear()
    return means
