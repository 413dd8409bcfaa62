"""The pipeline under kfp.local, with fake steps: what the driver promises, in seconds."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isr_dpo.errors import CorruptOutput, DataError, RunBusy

REPOSITORY = Path(__file__).parents[2]
FAKE_STEPS = Path(__file__).parent / "fake_steps"
RECIPE = {
    "name": "tiny",
    "iterations": 2,
    "model": {"start": "builtin:world", "registered_name": "tiny"},
    "data": {"train": "train.jsonl", "sets": {"dev": "dev.jsonl", "test": "test.jsonl"}},
    "evaluate": {"full_at": [2]},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(json.dumps(RECIPE))
    return tmp_path


def start(folder: Path, **environment: str) -> "subprocess.Popen[str]":
    paths = {"PYTHONPATH": f"{FAKE_STEPS}:{REPOSITORY}", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "pipelines", "run", "tiny.yaml", "--run-uri", "run"]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **paths, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    with start(folder, **environment) as process:
        output, errors = process.communicate(timeout=400)
    return subprocess.CompletedProcess([], process.returncode, output, errors)


def trace(folder: Path) -> list[str]:
    return (folder / "run" / "trace.txt").read_text().splitlines()


def test_a_run_goes_in_order_ends_with_the_table_and_is_not_repeated(folder: Path) -> None:
    (folder / "temporary").mkdir()
    first = run(folder, TMPDIR=str(folder / "temporary"))
    assert first.returncode == 0, first.stderr
    assert list((folder / "temporary").iterdir()) == []
    steps = trace(folder)
    assert steps[:7] == [
        "preflight 0 ",
        "prepare 0 policy",
        "train 0 dataset,policy",
        "answer 1 dataset,policy",
        "evaluate 1 answers,dataset",
        "register 1 evaluation,policy",
        "report 1 assessed",
    ]
    assert set(steps[7:9]) == {"generate 1 dataset,policy", "retrospect 1 dataset,policy"}
    assert steps[9:11] == ["judge 1 contexts,dataset,policy,responses", "train 1 dataset,policy,preferences"]
    assert [step.split()[0] for step in steps[11:]] == ["answer", "evaluate", "register", "report"]

    assert "00:0" in first.stdout
    assert "judge 1: begun" in first.stdout
    assert "chatter" not in first.stdout + first.stderr
    assert "KFP" not in first.stdout + first.stderr
    assert "chatter" in next(folder.glob("build/kfp/*/steps.log")).read_text()
    assert "50.0 [25.0, 75.0]" in first.stdout
    assert "2 of 8" in first.stdout
    assert "report:  run/report/index.html" in first.stdout

    started = time.monotonic()
    second = run(folder)
    assert time.monotonic() - started < 60
    assert second.returncode == 0
    assert "complete" in second.stdout
    assert "50.0 [25.0, 75.0]" in second.stdout
    assert trace(folder) == steps

    (folder / "run" / "policy-02" / "metrics.json").write_text("{}")
    third = run(folder)
    assert third.returncode == CorruptOutput.exit_code
    assert "policy-02/metrics.json" in third.stderr
    assert "Traceback" not in third.stderr


def test_a_fused_run_answers_the_dev_set_before_it_is_graded(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(json.dumps(RECIPE | {"engine": {"fused": True}}))
    made = run(folder)
    assert made.returncode == 0, made.stdout + made.stderr
    assert trace(folder)[2:10] == [
        "train 0 dataset,policy",
        "prefer 1 dataset,policy",
        "answer 1 dataset,policy",
        "evaluate 1 answers,dataset",
        "register 1 evaluation,policy",
        "report 1 assessed",
        "train 1 dataset,policy,preferences",
        "answer 2 dataset,policy",
    ]


def test_a_benchmark_trains_and_registers_nothing_and_ends_with_a_line_a_set(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(json.dumps(RECIPE | {"iterations": 0}))
    made = run(folder)
    assert made.returncode == 0, made.stdout + made.stderr
    assert trace(folder) == [
        "preflight 0 ",
        "prepare 0 policy",
        "answer 0 dataset,policy",
        "evaluate 0 answers,dataset",
        "report 0 assessed",
    ]
    for name in ("dev", "test"):
        (line,) = [line for line in made.stdout.splitlines() if line.startswith(f"{name} ")]
        assert "caption" in line
        assert "50.0 [25.0, 75.0]" in line
    assert "compare run OTHER-RUN" in made.stdout
    assert "promote" not in made.stdout
    again = run(folder)
    assert "complete" in again.stdout
    assert len(trace(folder)) == 5


def test_with_several_pods_a_stage_is_completed_after_all_its_shares(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(json.dumps(RECIPE | {"engine": {"pods": 3}}))
    made = run(folder)
    assert made.returncode == 0, made.stdout + made.stderr
    steps = trace(folder)
    for step in ("generate 1 dataset,policy", "judge 1 contexts,dataset,policy,responses", "answer 2 dataset,policy"):
        shares = [steps.index(f"{step} share {number}") for number in (1, 2, 3)]
        assert max(shares) < steps.index(step)
    assert not [step for step in steps if "share" in step and step.split()[0] in ("train", "evaluate", "prepare")]


def test_a_run_is_extended_without_repeating_what_stands(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(json.dumps(RECIPE | {"iterations": 1}))
    assert run(folder).returncode == 0
    (folder / "tiny.yaml").write_text(json.dumps(RECIPE))
    before = (folder / "run/policy-01/manifest.json").stat().st_mtime_ns
    extended = run(folder)
    assert "policy-02" in extended.stdout
    assert (folder / "run/policy-02/manifest.json").exists()
    assert (folder / "run/policy-01/manifest.json").stat().st_mtime_ns == before


def test_a_failing_step_ends_the_run_with_its_message_a_report_and_its_exit_code(folder: Path) -> None:
    failed = run(folder, FAKE_FAIL="train 0")
    assert failed.returncode == DataError.exit_code
    assert "failed in seed DPO: train.jsonl:3: not a row" in failed.stdout
    assert "Traceback" not in failed.stdout + failed.stderr
    assert len(failed.stdout.splitlines()) < 30
    assert "failed: train.jsonl:3" in (folder / "run/report/index.html").read_text()
    assert trace(folder)[-1].startswith("train 0")

    mended = run(folder)
    assert mended.returncode == 0, mended.stdout
    assert not (folder / "run/failed.json").exists()


def test_a_step_killed_without_a_word_is_reported_with_the_end_of_the_log(folder: Path) -> None:
    failed = run(folder, FAKE_DIE="prepare 0")
    assert failed.returncode == 1
    assert "ended without saying why" in failed.stdout
    assert "prepare 0: begun" in failed.stdout.partition("failed in pipeline:")[2]
    assert json.loads((folder / "run/failed.json").read_text())["error"] == "Killed"


def test_no_step_outlives_a_killed_driver_and_another_run_is_refused_meanwhile(folder: Path) -> None:
    heartbeat = folder / "run/heartbeat.txt"
    with start(folder, FAKE_WAIT="prepare 0") as driver:
        wait_for(heartbeat, driver)
        busy = run(folder)
        assert busy.returncode == RunBusy.exit_code
        assert "Traceback" not in busy.stderr
        driver.send_signal(signal.SIGKILL)
    until, last = time.monotonic() + 60, ""
    while (now := heartbeat.read_text()) != last:
        assert time.monotonic() < until, "the step outlives its driver"
        last = now
        time.sleep(1)
    assert run(folder).returncode == 0


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.1)
