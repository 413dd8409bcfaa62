"""The tasks of a run that cost something, step by step: GPU-seconds by the formulas, and bytes between store and pods.

A task's pods fetch what they read once a task (an empty cache), all frames and the whole policy each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from isr_dpo.config import Recipe
from isr_dpo.estimate.counts import Counts
from isr_dpo.estimate.machines import CPU, Device, Place, Placement
from isr_dpo.estimate.memory import engine_room, training
from isr_dpo.estimate.shapes import ModelShape
from isr_dpo.estimate.work import EMBEDDED, VLLM, WEIGHT_BYTES, Asking, Texts, Work, pair_flops

FRAME_BYTES_A_PIXEL = 0.87
"""Lossless WebP: 0.35 MB a clip of 8 frames at 224 x 224 [M]."""
VIDEO_BYTES = 2e6
"""Of a clip as it is published [A]."""
DECODE_SECONDS = 0.3
"""A clip on one core, 47 to 659 ms [M]."""
STORE_BYTES_A_SECOND = 0.5e9
"""Between a pod and S3: 4 Gb/s, the slower clients of the reference's table [M]."""
POD_SECONDS = 120.0
"""Until a pod runs on a node that is there [A]."""
ENGINE_SECONDS = 180.0
"""Until an engine, or the trainer's ranks, work once the weights are there [A]."""
GRADE_SECONDS = 2.0
"""One request to the grader [A]."""


@dataclass(frozen=True)
class Task:
    """One task of the pipeline. `seconds` are of its wall clock, `busy` GPU-seconds of work in it."""

    step: str
    index: int
    units: int
    """Rows, videos, pairs times epochs, or answers: what `times` counts of the step."""
    gpus: int
    seconds: float
    busy: float
    read: float
    written: float
    device: Device


class Planner:
    """Makes the tasks of a recipe on a placement."""

    def __init__(self, recipe: Recipe, placement: Placement, counts: Counts, model: ModelShape) -> None:
        self.recipe, self.counts, self.model = recipe, counts, model
        self.texts = Texts.of(recipe)
        self._placement = placement
        self.policy_bytes = float(model.weights * (WEIGHT_BYTES if recipe.model.dtype == "bfloat16" else 4))
        self.frame_bytes = counts.clips * model.pixels * FRAME_BYTES_A_PIXEL

    def tasks(self) -> Iterator[Task]:
        """In an order in which they can run one after another."""
        recipe = self.recipe
        yield self._prepare()
        if recipe.is_benchmark:
            yield self._answer(0, recipe.sets_at(0))
            yield self._evaluate(0)
            return
        if self.seeded:
            yield self._train(0)
        for index in range(1, recipe.iterations + 1):
            if index < recipe.iterations:
                yield from self._round(index)
            answered = [recipe.evaluate.dev] if recipe.engine.fused and index < recipe.iterations else []
            yield self._answer(index, [name for name in recipe.sets_at(index) if name not in answered])
            yield self._evaluate(index)

    @property
    def seeded(self) -> bool:
        """Whether there is a seed DPO; without one policy-01 is the start."""
        return self.counts.seed > 0 and self.recipe.train.seed_epochs > 0

    def place(self, step: str) -> Place | None:
        return None if self.recipe.model.device == "cpu" else self._placement.place(step)

    def ranks(self) -> int:
        place = self.place("train")
        return self.recipe.train.ranks or (place.count * place.nodes if place else 1)

    def asking(self, device: Device) -> Asking:
        """The recipe's engine on one device."""
        room = engine_room(self.recipe, self.model, self.texts, memory=device.memory)
        return Asking(self.model, self.texts, concurrency=room.concurrency, forgets=self.recipe.engine.kind != "vllm")

    def _round(self, index: int) -> Iterator[Task]:
        rows, videos = self.counts.rows, self.counts.videos
        design = self.recipe.retrospect.context
        describes = design != "none" and (design != "fixed" or index == 1)
        previous = index > 1 and design in ("retrospective", "shuffled")
        step = "prefer" if self.recipe.engine.fused else "generate"
        place = self.place(step)
        device = place.device if place else CPU
        ask = self.asking(device)
        draws, described = ask.draws(), ask.description(previous=previous)
        orders = 2 if self.recipe.judge.orders == "both" else 1
        asks = self.recipe.judge.by == "self"
        judged = ask.verdicts(context=design != "none", orders=orders) if asks else Work(0.0, 0.0)
        video = ask.video()
        if step == "prefer":
            dev = ask.answer().times(self.counts.sets[self.recipe.evaluate.dev])
            kept = videos if self.recipe.engine.kind == "vllm" and design != "shuffled" else None
            seen = rows + (videos if describes else 0) + (rows if asks else 0) if kept is None else kept
            work = video.times(seen).plus(draws.times(rows)).plus(judged.times(rows)).plus(dev)
            yield self._engine("prefer", index, rows, work.plus(described.times(videos)) if describes else work)
        else:
            yield self._engine("generate", index, rows, video.plus(draws).times(rows))
            if describes:
                yield self._engine("retrospect", index, videos, video.plus(described).times(videos))
            yield self._engine("judge", index, rows, video.plus(judged).times(rows) if asks else judged)
        yield self._train(index)

    def _answer(self, index: int, names: list[str]) -> Task:
        questions = sum(self.counts.sets[name] for name in names)
        if self.recipe.model.start is None or self.recipe.answer.predictions:  # no model of ours
            return Task("answer", index, questions, 0, 0.0, 0.0, 0.0, 0.0, CPU)
        place = self.place("answer")
        return self._engine(
            "answer", index, questions, self.asking(place.device if place else CPU).answer().times(questions)
        )

    def _engine(self, step: str, index: int, units: int, work: Work) -> Task:
        """A step of the policy, its rows shared by the devices of all pods; one without any opens no engine."""
        place, pods = self.place(step), self.recipe.engine.pods
        device = place.device if place else CPU
        gpus = place.count * pods if place else 0
        busy = work.seconds(device, VLLM if self.recipe.engine.kind == "vllm" else EMBEDDED)
        fetched = self.policy_bytes + self.frame_bytes if units else 0.0
        seconds = busy / max(gpus, 1) + self._overhead(device, fetched, starts=units > 0)
        return Task(step, index, units, gpus, seconds, busy if place else 0.0, fetched * pods, 0.0, device)

    def _train(self, index: int) -> Task:
        settings, model = self.recipe.train, self.model
        pairs, epochs = (self.counts.seed, settings.seed_epochs) if index == 0 else (self.counts.rows, settings.epochs)
        place, ranks = self.place("train"), self.ranks()
        device = place.device if place else CPU
        flops = pairs * pair_flops(
            model,
            self.texts,
            epochs=epochs,
            checkpointing=settings.gradient_checkpointing,
            lora=settings.lora_rank is not None,
        )
        peak = settings.peak_tflops * 1e12 if settings.peak_tflops else device.flops
        busy = flops / (peak * VLLM.train)
        masters = 4.0 * model.trained if self.recipe.model.dtype != "float32" else 0.0
        moving = model.trained if settings.lora_rank is None else settings.lora_rank * model.linear_sides
        minutes = max(settings.checkpoint_minutes, 1.0)
        checkpoints = 12.0 * moving * int(busy / ranks / 60 / minutes)
        fetched = self.policy_bytes + self.frame_bytes + (masters if index > (0 if self.seeded else 1) else 0)
        nodes = place.nodes if place else 1
        kept = self.policy_bytes + masters
        seconds = busy / ranks + self._overhead(device, fetched + kept)
        gpus = place.count * nodes if place else 0
        return Task(
            "train",
            index,
            pairs * epochs,
            gpus,
            seconds,
            busy if place else 0.0,
            fetched * nodes,
            kept + checkpoints,
            device,
        )

    def _prepare(self) -> Task:
        workers = self.recipe.data.workers
        clips = 0 if self.recipe.answer.predictions else self.counts.clips
        read, written = clips * VIDEO_BYTES, self.frame_bytes if clips else 0.0
        return Task("prepare", 0, clips, 0, clips * DECODE_SECONDS / workers, 0.0, read, written, CPU)

    def _evaluate(self, index: int) -> Task:
        grades = sum(self.counts.sets[name] for name in self.recipe.sets_at(index))
        asked = self.recipe.evaluate.grader != "rules"
        seconds = grades * GRADE_SECONDS / self.recipe.evaluate.concurrency if asked else 0.0
        return Task("evaluate", index, grades, 0, seconds, 0.0, 0.0, 0.0, CPU)

    def _overhead(self, device: Device, moved: float, *, starts: bool = True) -> float:
        if device.memory is None:
            return 0.0
        return POD_SECONDS + (ENGINE_SECONDS if starts else 0.0) + moved / STORE_BYTES_A_SECOND

    def memory(self, step: str) -> float | None:
        """Bytes that the step needs of a GPU; None where it has none."""
        place = self.place(step)
        if place is None:
            return None
        if step == "train":
            return training(self.recipe, self.model, ranks=self.ranks())
        return engine_room(self.recipe, self.model, self.texts, memory=place.device.memory).needed
