"""The estimate of a whole recipe, its limits, and the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from isr_dpo import cli, times
from isr_dpo.config import Recipe, parse
from isr_dpo.errors import DataError, RecipeError
from isr_dpo.estimate import Counts, Placement, estimate, read_placement
from isr_dpo.estimate.counts import count
from isr_dpo.estimate.machines import device
from isr_dpo.estimate.measured import seconds_a_unit
from isr_dpo.estimate.money import bill
from isr_dpo.estimate.shapes import shape_of
from isr_dpo.preflight import claim

CONFIG = {"architectures": ["VideoLlavaForConditionalGeneration"], "text_config": {"vocab_size": 32064}}
SEVEN_B = shape_of(CONFIG, frames=8)
PAPER = Counts(rows=17_000, seed=17_000, videos=17_000, sets={"dev": 2_000}, clips=18_000)
TREE: dict[str, Any] = {
    "name": "paper",
    "iterations": 9,
    "model": {"start": "s3://bucket/start", "registered_name": "m", "dtype": "bfloat16"},
    "data": {"train": "s3://bucket/train.jsonl", "sets": {"dev": "s3://bucket/dev.qa.jsonl"}},
    "engine": {"kind": "vllm"},
}


def recipe(*changes: str) -> Recipe:
    return parse(json.dumps(TREE), changes=changes)


def hours(made: Any, step: str) -> Any:
    return next(cost for cost in made.steps if cost.step == step)


def test_the_paper_s_run_on_one_node() -> None:
    """The seed's three epochs are ten passes, eight rounds four each: 42 where nine rounds of one epoch have 36, which
    are 32.2 busy GPU-hours at 55 % MFU (reference: 17.7 of the floor)."""
    made = estimate(recipe(), counts=PAPER, model=SEVEN_B)
    assert hours(made, "train").busy_gpu_hours == pytest.approx(17.7 / 0.55 * 42 / 36, rel=0.02)
    assert made.dominant.step == "train"
    assert [cost.tasks for cost in made.steps] == [1, 9, 8, 9, 9]
    assert {cost.step: cost.gpus for cost in made.steps} == {
        "prepare": 0,
        "train": 8,
        "prefer": 8,
        "answer": 8,
        "evaluate": 0,
    }
    assert made.busy_gpu_hours < made.gpu_hours < 1.5 * made.busy_gpu_hours
    assert made.findings() == []
    policy, masters = 2 * SEVEN_B.weights, 4 * SEVEN_B.trained
    frames = 18_000 * 8 * 224 * 224 * 0.87
    assert made.stored_bytes == pytest.approx(9 * policy + masters + frames)
    train = hours(made, "train")
    assert train.read_bytes == pytest.approx(9 * (policy + frames) + 8 * masters)


def test_without_seed_preferences_policy_01_is_the_start() -> None:
    made = estimate(recipe(), counts=Counts(17_000, 0, 17_000, {"dev": 2_000}, 18_000), model=SEVEN_B)
    assert hours(made, "train").tasks == 8
    assert made.stored_bytes < estimate(recipe(), counts=PAPER, model=SEVEN_B).stored_bytes


def test_gpus_that_wait_are_counted() -> None:
    """Twice the GPUs halve the work's time and not the starting, so they are allocated for longer in sum."""
    small = Counts(rows=500, seed=0, videos=500, sets={"dev": 200}, clips=700)
    one = estimate(recipe(), counts=small, model=SEVEN_B)
    two = estimate(recipe("engine.pods=2"), counts=small, model=SEVEN_B)
    assert two.busy_gpu_hours == pytest.approx(one.busy_gpu_hours)
    assert two.gpu_hours > one.gpu_hours
    assert two.wall_hours < one.wall_hours
    assert two.cheaper.startswith("engine.pods=1 saves")


def test_the_embedded_engine_is_told_of_vllm_and_stages_of_fusing() -> None:
    embedded = estimate(recipe("engine.kind=hf", "engine.batch_rows=16"), counts=PAPER, model=SEVEN_B)
    assert embedded.cheaper.startswith("engine.kind=vllm engine.fused=true saves")
    by_stage = estimate(recipe("engine.fused=false"), counts=PAPER, model=SEVEN_B)
    assert by_stage.cheaper.startswith("engine.fused=true saves")
    fused = estimate(recipe(), counts=PAPER, model=SEVEN_B)
    assert fused.gpu_hours < by_stage.gpu_hours < embedded.gpu_hours


def test_no_describing_without_contexts_and_no_judging_by_length() -> None:
    plain = estimate(recipe("engine.fused=false", "retrospect.context=none"), counts=PAPER, model=SEVEN_B)
    assert "retrospect" not in {cost.step for cost in plain.steps}
    longer = estimate(recipe("engine.fused=false", "judge.by=longer"), counts=PAPER, model=SEVEN_B)
    assert hours(longer, "judge").busy_gpu_hours == 0
    once = estimate(recipe("engine.fused=false", "retrospect.context=fixed"), counts=PAPER, model=SEVEN_B)
    assert hours(once, "retrospect").tasks == 1


def test_limits_of_the_recipe_and_of_a_gpu_are_findings() -> None:
    spent = ("evaluate.grader=openai", "evaluate.price_prompt_usd=100", "evaluate.price_completion_usd=100")
    made = estimate(
        recipe("max_gpu_hours=10", "evaluate.max_cost_usd=1", *spent, "train.micro_batch_tokens=32768"),
        counts=PAPER,
        model=SEVEN_B,
    )
    over, money, memory = made.findings()
    assert "max_gpu_hours is 10" in over
    assert "evaluate.max_cost_usd is 1" in money
    assert memory.startswith("train needs about 22")
    assert "of a GPU that has 80" in memory


def test_the_grader_s_bill() -> None:
    """50,000 grades of some 600 tokens cost 5 to 10 dollars at 0.15 and 0.60 a million, half of that in batches."""
    prices = ("evaluate.grader=openai", "evaluate.price_prompt_usd=0.15", "evaluate.price_completion_usd=0.6")
    asked = recipe(*prices, "evaluate.full_at=[]", "iterations=1")
    made = bill(asked, {"dev": 50_000}, answer_tokens=120)
    assert made.requests == 50_000
    assert 400 < made.prompt_tokens / 50_000 < 800
    assert made.usd == pytest.approx(made.prompt_tokens * 0.15e-6 + 50_000 * 60 * 0.6e-6)
    assert 5 <= (made.usd or 0) <= 10
    halved = bill(
        recipe(*prices, "evaluate.full_at=[]", "iterations=1", "evaluate.batch=true"),
        {"dev": 50_000},
        answer_tokens=120,
    )
    assert halved.usd == pytest.approx((made.usd or 0) / 2)
    assert bill(recipe(), {"dev": 50_000}, answer_tokens=120).requests == 0


def test_a_placement_says_which_gpus_a_step_has(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    gpus = {"train": {"gpu": {"kind": "nvidia-h100-80gb", "count": 8}, "nodes": 2}, "prefer": {"gpu": {"kind": "L4"}}}
    file.write_text(yaml.safe_dump({"steps": {**gpus, "evaluate": {"image": "x"}}}))
    placement = read_placement(file)
    made = estimate(recipe(), placement, counts=PAPER, model=SEVEN_B)
    assert {cost.step: cost.gpus for cost in made.steps if cost.gpus} == {"train": 16, "prefer": 1}
    a100 = estimate(recipe(), counts=PAPER, model=SEVEN_B)
    faster = hours(a100, "train").busy_gpu_hours / hours(made, "train").busy_gpu_hours
    assert faster == pytest.approx(989 / 312)
    assert made.findings() == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: [train]", "has a mapping `steps`"),
        ("steps: {train: {gpu: {kind: V2000, count: 1}}}", "steps.train.gpu.kind: GPU kind 'V2000' is unknown; known"),
        ("steps: {train: {gpu: {kind: A100, count: -1}}}", "steps.train.gpu.count = -1"),
        ("steps: {train: {gpu: 8}}", "steps.train.gpu = 8: written as"),
        ("steps: {", "not YAML"),
    ],
)
def test_a_wrong_placement_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=r"wrong\.yaml") as caught:
        read_placement(file)
    assert said in str(caught.value)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_placement(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("kind", "tflops", "gigabytes"),
    [("A100-80G", 312, 80), ("nvidia-a100-80gb", 312, 80), ("NVIDIA-A100-SXM4-40GB", 312, 40), ("H200", 989, 141)],
)
def test_gpu_kinds_as_clouds_write_them(kind: str, tflops: float, gigabytes: float) -> None:
    found = device(kind)
    assert (found.flops, found.memory) == (pytest.approx(tflops * 1e12), gigabytes * 1e9)


def rows_of(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def files(tmp_path: Path) -> list[str]:
    seed = {"chosen": "a", "rejected": "b"}
    train = [{"id": str(n), "video": f"v{n // 2}", "prompt": "what ?", **(seed if n < 3 else {})} for n in range(10)]
    dev = [{"id": f"d{n}", "video": f"v{n}", "conversations": []} for n in range(4)]
    return [
        f"data.train={rows_of(tmp_path / 'train.jsonl', train)}",
        f"data.sets.dev={rows_of(tmp_path / 'dev.qa.jsonl', dev)}",
    ]


def test_rows_are_counted_or_said(tmp_path: Path) -> None:
    assert count(recipe(*files(tmp_path))) == Counts(rows=10, seed=3, videos=5, sets={"dev": 4}, clips=5)
    said = count(recipe(), rows=100, videos=40, set_rows=20)
    assert said == Counts(rows=100, seed=100, videos=40, sets={"dev": 20}, clips=60)
    with pytest.raises(DataError, match=r"data\.train: there is no .*gone\.jsonl; --rows N stands for"):
        count(recipe(f"data.train={tmp_path}/gone.jsonl"), set_rows=1)


def test_a_finished_run_s_times_stand_beside(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    claim(recipe("train.seed_epochs=2"), run)
    times.record(run, "train", 0, started=0, seconds=40, metrics={"pairs": 10})  # 20 pairs times epochs
    times.record(run, "train", 1, started=0, seconds=60, metrics={"pairs": 20})
    times.record(run, "prefer", 1, started=0, seconds=5, metrics={"preferences/rows": 100})
    for share in (1, 2):
        times.record(run, "prefer", 1, started=0, seconds=10, share=share)
    times.record(run, "generate", 1, started=0, seconds=9, ended="OutsideError")
    measured = seconds_a_unit(run)
    assert measured == {"train": 100 / 40, "prefer": 25 / 100}
    made = estimate(recipe(), counts=PAPER, model=SEVEN_B, measured=measured)
    assert hours(made, "train").measured_hours == pytest.approx(17_000 * (3 + 8) * 2.5 / 3600)
    assert hours(made, "prefer").measured_hours == pytest.approx(17_000 * 8 * 0.25 / 3600)
    assert hours(made, "answer").measured_hours is None
    small = Counts(rows=10, seed=10, videos=10, sets={"dev": 10}, clips=1000)
    cpu = estimate(recipe("model.device=cpu"), counts=small, model=SEVEN_B, measured={"evaluate": 1e9})
    assert cpu.dominant.step == "evaluate"
    with pytest.raises(DataError, match=r"no run\.json there"):
        seconds_a_unit(str(tmp_path))


def test_the_command_prints_a_table_or_json_and_fails_above_a_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "paper.yaml").write_text(yaml.safe_dump(TREE))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    command = ["estimate", str(tmp_path / "paper.yaml"), "--rows", "17000", "--set-rows", "2000"]
    command += ["--model-config", str(tmp_path / "config.json")]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "paper on 8 x A100-80G: 17000 rows of 17000 videos, 2000 questions in 1 sets" in said
    assert "dominates  train; cheaper: " in said
    train = next(line for line in said.splitlines() if line.startswith("train "))
    assert train.split()[:3] == ["train", "9", "8"]
    assert cli.main([*command, "--json", "--set", "max_gpu_hours=1"]) == 2
    out, err = capsys.readouterr()
    tree = json.loads(out)
    assert tree["dominant"] == "train"
    assert tree["findings"][0] in err
    assert cli.main(["estimate", str(tmp_path / "paper.yaml"), "--placement", "none.yaml", *command[2:]]) == 2
    assert "none.yaml: cannot be read" in capsys.readouterr().err
    assert cli.main(["estimate", "smoke", "--rows", "5", "--set-rows", "5", "--placement", "local"]) == 0
    assert "smoke on no GPU" in capsys.readouterr().out


def test_the_demo_s_recipe_needs_no_gpu_and_a_benchmark_of_files_no_model() -> None:
    demo = parse(Path("pipelines/recipes/smoke.yaml").read_text())
    made = estimate(demo, Placement(), counts=Counts(500, 400, 500, {"dev": 200, "test": 200}, 900))
    assert made.gpu_hours == 0
    assert made.placement == "no GPU"
    read = parse(
        json.dumps({"name": "b", "iterations": 0, "data": {"sets": {"a": "x"}}, "answer": {"predictions": {"a": "y"}}})
    )
    graded = estimate(read, counts=Counts(0, 0, 0, {"a": 1000}, 1000))
    assert graded.gpu_hours == 0
    assert graded.findings() == []


def test_estimating_loads_no_torch() -> None:
    """The preflight runs in an image without it."""
    code = "import sys, isr_dpo.estimate, isr_dpo.cli.estimate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
