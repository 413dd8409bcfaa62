"""Does the loop do anything? The smoke world run longer, with the policy, a coin and a ruler as judge, and with the
policy as a judge that reads no description, or another clip's.

    make study        (or python -m tests.bench.loop [--rounds N] [--workers N] ...)

For each run seed and each arm (ARMS) the loop runs from the same policy-01 through the ordinary
steps. Policy-01 and the last policy answer the same held-out questions, graded by the packaged rule-based grader.
Printed and written to tests/bench/RESULTS.md: accuracy, words, the paired difference between last and first policy, and
between the method and the other arms, with 95 % intervals clustered by clip. A question's value is its mean over the
run seeds, so that the interval speaks of clips; the gain by seed stands beside it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from isr_dpo import config, layout, manifest, outputs
from isr_dpo.config import Recipe
from isr_dpo.evaluate.statistics import Difference, paired_difference
from isr_dpo.records import Grade, read_files

ARMS = {
    "self": (),
    "random": ("judge.by=random",),
    "longer": ("judge.by=longer",),
    "self-none": ("retrospect.context=none",),
    "self-shuffled": ("retrospect.context=shuffled",),
}
"""Name -> what it changes in the recipe: who judges, and what the policy as judge is given to read."""
RECIPE = "pipelines/recipes/smoke.yaml"
SECTION = ("<!-- loop: begin -->", "<!-- loop: end -->")
RESULTS = Path(__file__).parent / "RESULTS.md"


def main() -> None:
    options = _options()
    if options.one:
        arm, seed = options.one.split(":")
        run(options.folder, arm=arm, seed=int(seed), rounds=options.rounds)
        return
    draw(options.folder, questions=options.questions)
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // options.workers))}
    base = [sys.executable, "-m", "tests.bench.loop", "--folder", str(options.folder), "--rounds", str(options.rounds)]

    def start(name: str) -> None:
        log = options.folder / f"{name.replace(':', '-')}.log"
        with log.open("w") as stream:
            subprocess.run([*base, "--one", name], check=True, stdout=stream, stderr=stream, env=environment)
        print(f"{name}: done", flush=True)

    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(start, [f"seed-dpo:{seed}" for seed in range(options.seeds)]))
        list(pool.map(start, [f"{arm}:{seed}" for seed in range(options.seeds) for arm in ARMS]))
    text = report(options.folder, seeds=options.seeds, rounds=options.rounds)
    print(text)
    write(text, command="python -m tests.bench.loop " + " ".join(sys.argv[1:]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/study"))
    parser.add_argument("--rounds", type=int, default=4, help="self-retrospective rounds after the seed DPO")
    parser.add_argument("--seeds", type=int, default=3, help="run seeds")
    parser.add_argument("--questions", type=int, default=2400, help="held-out questions")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def draw(folder: Path, *, questions: int) -> None:
    """The demo's training rows and dev set, and a larger held-out set."""
    from isr_dpo.cli.world import WORLD
    from isr_dpo.data import world

    world.draw(folder / "world", **{**WORLD, "test": questions}, progress=print)


def recipe_for(folder: Path, *, arm: str, seed: int, rounds: int) -> Recipe:
    """The smoke recipe with this arm and seed; only the first and the last policy answer the held-out set."""
    changes = [
        *ARMS.get(arm, ()),
        f"name=study-{arm}-{seed}",
        f"seed={seed}",
        f"iterations={rounds + 1}",
        f"data.train={folder}/world/train.jsonl",
        f"data.sets={{dev: {folder}/world/dev.qa.jsonl, test: {folder}/world/test.qa.jsonl}}",
        f"evaluate.full_at=[1, {rounds + 1}]",
        f"tracking.uri=sqlite:///{folder}/mlflow-{arm}-{seed}.db",
    ]
    return config.load(RECIPE, changes=changes)


def run(folder: Path, *, arm: str, seed: int, rounds: int) -> None:
    """One run. `seed-dpo` makes what the arms of a seed share: frames, dataset, policy-01 and its answers."""
    from isr_dpo.steps import run_step
    from isr_dpo.steps.inputs import inputs_of

    shared, uri = str(folder / f"seed-dpo-{seed}"), str(folder / f"{arm}-{seed}")
    recipe = recipe_for(folder, arm=arm, seed=seed, rounds=rounds)
    steps: list[tuple[str, int]] = [("preflight", 0), ("prepare", 0), ("train", 0), ("answer", 1), ("evaluate", 1)]
    if arm != "seed-dpo":
        for place in (layout.frames, layout.dataset, lambda run_uri: layout.policy(run_uri, 1)):
            made = manifest.find(place(shared))
            assert made is not None
            if manifest.find(place(uri)) is None:
                outputs.alias(place(uri), made)
        steps = [("preflight", 0)]
        for index in range(1, rounds + 1):
            steps += [(name, index) for name in ("generate", "retrospect", "judge", "train")]
            steps += [("answer", index + 1), ("evaluate", index + 1)]
    for name, index in steps:
        if name == "retrospect" and recipe.retrospect.context == "none":
            continue
        run_step(name, recipe, inputs_of(name, recipe, uri, index), uri, index)


def grades(uri: str, policy: int, name: str) -> list[Grade]:
    made = manifest.find(layout.graded(uri, policy, "caption", name))
    assert made is not None, f"{uri} has no evaluation of policy {policy} on {name}"
    return read_files(manifest.files(made), [n for n in made.files if n.startswith("part-")], Grade)


def report(folder: Path, *, seeds: int, rounds: int) -> str:
    """The table of all runs, and the two paired differences, in Markdown."""
    first = [grades(str(folder / f"seed-dpo-{seed}"), 1, "test") for seed in range(seeds)]
    last = {j: [grades(str(folder / f"{j}-{s}"), rounds + 1, "test") for s in range(seeds)] for j in ARMS}
    clips = {grade.id: grade.video for grade in first[0]}
    lines = [
        f"{len(first[0])} held-out questions on {len(set(clips.values()))} clips, {seeds} run seeds, {rounds} rounds; "
        "rule-based grader (no model); intervals are 95 %, clustered by clip.",
        "",
        "| arm | dev accuracy, policy-01 to the last (mean of seeds) | test accuracy, last | words | "
        "last minus policy-01 | by seed |",
        "|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        gain = paired_difference(_mean(last[arm]), _mean(first), clips)
        each = [paired_difference(_mean([b]), _mean([a]), clips).mean for a, b in zip(first, last[arm], strict=True)]
        lines.append(
            f"| {arm} | {' '.join(_course(folder, arm, seeds, rounds))} | {_accuracy(last[arm]):.3f} | "
            f"{_words(last[arm]):.1f} | {_shown(gain)} | {', '.join(f'{value:+.3f}' for value in each)} |"
        )
    lines += ["", f"policy-01: test accuracy {_accuracy(first):.3f}, {_words(first):.1f} words.", ""]
    for other in list(ARMS)[1:]:
        difference = paired_difference(_mean(last["self"]), _mean(last[other]), clips)
        lines.append(f"self minus {other}, last policy: **{_shown(difference)}**")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def write(text: str, *, command: str) -> None:
    """Puts the table into RESULTS.md, in place of the one before."""
    begin, end = SECTION
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
    where = f"{os.cpu_count()} CPU cores, {versions}"
    block = f"{begin}\n## The loop, by judge and context\n\n`{command.strip()}` on {where}\n\n{text}{end}"
    standing = RESULTS.read_text(encoding="utf-8") if RESULTS.is_file() else f"# Measured\n\n{begin}{end}\n"
    head, _, rest = standing.partition(begin)
    RESULTS.write_text(head + block + rest.partition(end)[2], encoding="utf-8")


def _mean(runs: Sequence[Sequence[Grade]]) -> Mapping[str, float]:
    """A question's correctness, averaged over the runs."""
    by_run = [{grade.id: float(bool(grade.correct)) for grade in run if grade.status == "scored"} for run in runs]
    return {
        key: sum(values[key] for values in by_run) / len(by_run) for key in by_run[0] if all(key in v for v in by_run)
    }


def _accuracy(runs: Sequence[Sequence[Grade]]) -> float:
    values = _mean(runs).values()
    return sum(values) / len(values)


def _words(runs: Sequence[Sequence[Grade]]) -> float:
    words = [grade.words for run in runs for grade in run]
    return sum(words) / len(words)


def _course(folder: Path, arm: str, seeds: int, rounds: int) -> list[str]:
    first = [grades(str(folder / f"seed-dpo-{seed}"), 1, "dev") for seed in range(seeds)]
    later = [
        [grades(str(folder / f"{arm}-{seed}"), policy, "dev") for seed in range(seeds)]
        for policy in range(2, rounds + 2)
    ]
    return [f"{_accuracy(runs):.2f}" for runs in [first, *later]]


def _shown(difference: Difference) -> str:
    return f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


if __name__ == "__main__":
    main()
