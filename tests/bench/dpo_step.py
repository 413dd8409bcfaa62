"""A DPO step of ours beside TRL's: seconds a pair and peak memory.

    make bench        (or python -m tests.bench.dpo_step [--repeats N] [--small] ...)

Both train the same random Video-LLaVA on the same pairs: fp32 on a CPU, bf16 on a GPU. TRL runs its own loop with its
defaults (gradient checkpointing is one), ours runs with its default and, as "equal", with checkpointing too. Each side
is a process of its own; after a warm-up step they take turns, one step at a time. A step of ours counts the video tower
and the reference pass of its pairs (once an epoch, one epoch), one of TRL's what TRL does every step. Every step's loss
must agree between the sides, or there is no result.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.dpo_child import Job
from tests.bench.dpo_setup import SMALL, Sizes


class Spread(NamedTuple):
    """Of repeats."""

    median: float
    low: float
    high: float
    quartiles: tuple[float, float]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        quarters = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
        return cls(statistics.median(values), min(values), max(values), (quarters[0], quarters[2]))


@dataclass
class Child:
    """A side, from the parent's view."""

    name: str
    process: subprocess.Popen[str]
    facts: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)

    def step(self) -> None:
        self._say("step")
        self.steps.append(self._hear())

    def start(self) -> None:
        self.facts = self._hear()

    def _say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(
                f"dpo_step: {self.name} ended with exit code {self.process.wait()}; its messages are above"
            )
        values: dict[str, Any] = json.loads(line)
        return values

    def stop(self) -> None:
        if self.process.poll() is None:
            self._say("stop")
            self.process.wait(timeout=60)


SIDES = {"trl": ("trl", True), "ours": ("ours", False), "ours, checkpointing": ("ours", True)}
"""Name -> whose trainer, and whether with gradient checkpointing."""


def main() -> None:
    options = _options()
    if options.side:
        _side(options)
        return
    sizes = _sizes(options)
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), sizes)
        sides = measure(
            Path(folder), repeats=options.repeats, micro_batch_pairs=options.micro_batch_pairs, threads=options.threads
        )
    if options.keep:
        options.keep.write_text(json.dumps({name: [side.facts, *side.steps] for name, side in sides.items()}, indent=1))
    print(report(sides, sizes, micro_batch_pairs=options.micro_batch_pairs, gpu=sides["trl"].facts["gpu"]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=Sizes.pairs, help="a step's")
    parser.add_argument("--micro-batch-pairs", type=int, default=1, help="in one forward pass")
    parser.add_argument("--hidden", type=int, default=Sizes.shape.hidden)
    parser.add_argument("--layers", type=int, default=Sizes.shape.layers)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each side, on a CPU")
    parser.add_argument("--small", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--keep", type=Path, help="file for all that the sides said, as JSON")
    for name in ("--side", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser.parse_args()


def _sizes(options: argparse.Namespace) -> Sizes:
    if options.small:
        return SMALL
    heads, sizes = options.hidden // 64, Sizes(pairs=options.pairs)
    intermediate = options.hidden * 43 // 16
    shape = replace(sizes.shape, hidden=options.hidden, intermediate=intermediate, layers=options.layers)
    return replace(sizes, shape=replace(shape, heads=heads, kv_heads=heads))


def _side(options: argparse.Namespace) -> None:
    """What a child process does."""
    from tests.bench import dpo_ours, dpo_trl
    from tests.bench.dpo_child import Channel

    owner, checkpointing = SIDES[options.side]
    job = Job(Path(options.folder), checkpointing, options.micro_batch_pairs, options.threads)
    {"ours": dpo_ours, "trl": dpo_trl}[owner].run(job, Channel())


def draw(folder: Path, sizes: Sizes) -> None:
    """Model and pairs, by a process of its own, so that this one stays small and quiet."""
    code = "import sys; from pathlib import Path; from tests.bench.dpo_setup import Shape, Sizes, write; "
    code += f"write(Path(sys.argv[1]), {sizes!r})"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, stdout=sys.stderr)


def measure(
    folder: Path, *, repeats: int, micro_batch_pairs: int, threads: int, together: bool = True
) -> dict[str, Child]:
    """All sides: a warm-up step and `repeats` steps each, in turn. Not `together`: one side after the other, where a
    device does not hold all of them."""
    with ExitStack() as stack:
        command = ["--folder", str(folder), "--micro-batch-pairs", str(micro_batch_pairs), "--threads", str(threads)]
        if together:
            children = [_started(stack, name, command, threads) for name in SIDES]
            _take_turns(children, repeats)
        else:
            children = []
            for name in SIDES:
                children.append(_started(stack, name, command, threads))
                _take_turns(children[-1:], repeats)
    return {child.name: child for child in children}


def _take_turns(children: Sequence[Child], repeats: int) -> None:
    for child in children:
        child.start()
    for _ in range(1 + repeats):
        for child in children:
            child.step()
    for child in children:
        child.stop()


def _started(stack: ExitStack, name: str, arguments: Sequence[str], threads: int) -> Child:
    command = [sys.executable, "-m", "tests.bench.dpo_step", "--side", name, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    pipe = subprocess.PIPE
    process = stack.enter_context(
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)  # its stderr is ours
    )
    stack.callback(process.kill)
    return Child(name, process)


def check(sides: Mapping[str, Child], *, gpu: bool) -> float:
    """The largest difference of a step's loss between TRL and ours.

    Raises:
        SystemExit: they train different things.
    """
    loss_tolerance, logp_tolerance = (0.05, 1e-2) if gpu else (1e-3, 1e-5)
    theirs, worst = sides["trl"], 0.0
    for name, side in sides.items():
        for fact in ("video_tokens", "tokens", "response_tokens", "trained_parameters"):
            if side.facts[fact] != theirs.facts[fact]:
                raise SystemExit(f"dpo_step: {fact}: {side.facts[fact]} ({name}), {theirs.facts[fact]} (trl)")
        for number, (one, other) in enumerate(zip(side.steps, theirs.steps, strict=True)):
            for key in ("chosen_logp", "rejected_logp"):
                if not abs(one[key] - other[key]) <= logp_tolerance * abs(other[key]):
                    raise SystemExit(f"dpo_step: step {number}: {key} {one[key]} ({name}), {other[key]} (trl)")
            difference = abs(one["loss"] - other["loss"])
            if not difference <= loss_tolerance:
                raise SystemExit(f"dpo_step: step {number}: loss {one['loss']} ({name}), {other['loss']} (trl)")
            worst = max(worst, difference)
    return worst


def report(sides: Mapping[str, Child], sizes: Sizes, *, micro_batch_pairs: int, gpu: bool) -> str:
    """The table, and the two lines that are quoted."""
    from isr_dpo.dpo.floor import Lengths
    from tests.bench import dpo_cost  # imports torch, which this process needs only now

    lengths = [Lengths(*row) for row in sides["ours"].facts["lengths"]]
    shape = sizes.shape
    shares = dpo_cost.shares(shape, lengths)
    worst = check(sides, gpu=gpu)
    losses = " ".join(f"{step['loss']:.4f}" for step in sides["trl"].steps)
    lines = [
        f"{shape.layers} layers of width {shape.hidden}, vocabulary {shape.vocabulary}, {sizes.pairs} pairs a step in "
        f"micro-batches of {micro_batch_pairs}: {_mean(lengths, 0):.0f} prompt tokens "
        f"({sides['ours'].facts['video_tokens']} video; {sides['trl'].facts['video_tokens']} as images for TRL), "
        f"{_mean(lengths, 1):.0f} chosen, {_mean(lengths, 2):.0f} rejected",
        f"forward FLOPs: tower {shares.tower:.1%}, head {shares.head:.1%}",
        f"losses of the steps: {losses}; ours differ by at most {worst:.1e}",
        "",
        f"{'':22}{'s a pair':>10}{'min':>9}{'max':>9}{'quartiles':>18}{'once':>8}{'cpu s':>9}{'peak GB':>10}",
    ]
    times = {name: Spread.of(_a_pair(side, "seconds", sizes)) for name, side in sides.items()}
    peaks = {name: max(step["peak_bytes"] for step in side.steps) for name, side in sides.items()}
    for name, side in sides.items():
        time = times[name]
        once, cpu = (statistics.median(_a_pair(side, key, sizes)) for key in ("once_seconds", "cpu_seconds"))
        quartiles = f"{time.quartiles[0]:.3f} - {time.quartiles[1]:.3f}"
        row = f"{name:22}{time.median:10.3f}{time.low:9.3f}{time.high:9.3f}{quartiles:>18}"
        lines.append(row + f"{once:8.3f}{cpu:9.3f}{peaks[name] / 1e9:10.3f}")
    trl, plain, equal = SIDES
    ideal = dpo_cost.ideal_ratio(shape, lengths)
    return "\n".join(
        [
            *lines,
            "",
            f"dpo_step setting=defaults ratio={times[trl].median / times[plain].median:.2f} ideal={ideal:.2f}",
            f"dpo_step setting=equal ratio={times[trl].median / times[equal].median:.2f} "
            f"memory={peaks[equal] / peaks[trl]:.2f}",
        ]
    )


def _a_pair(side: Child, key: str, sizes: Sizes) -> list[float]:
    """`key` of each repeat, the warm-up left out."""
    return [step.get(key, 0.0) / sizes.pairs for step in side.steps[1:]]


def _mean(lengths: Sequence[Sequence[int]], column: int) -> float:
    return statistics.fmean(row[column] for row in lengths)


if __name__ == "__main__":
    main()
