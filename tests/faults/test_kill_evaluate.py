"""kill -9 at any moment of evaluate: nothing is lost, nothing is bought twice, and the grades are those of a run that
nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isr_dpo import layout, manifest, outputs
from isr_dpo.config import Recipe
from isr_dpo.evaluate.account import spent as spent_by
from isr_dpo.evaluate.ledger import Ledger
from isr_dpo.records import Grade
from isr_dpo.start import start_manifest
from isr_dpo.steps import STEPS
from isr_dpo.steps.common import rows_of
from isr_dpo.steps.inputs import inputs_of
from tests.evaluate.grading import number
from tests.servers.batches import Batching
from tests.servers.completions import Said
from tests.servers.grader_server import KEY, Answer, GraderServer, grader_server

ROWS = 48
CONCURRENCY = 4


def recipe_of(folder: Path, url: str, **changes: Any) -> Recipe:
    """A benchmark of imported answers to one set."""
    evaluate = {"grader": "openai", "model": "grader-1", "base_url": url, "concurrency": CONCURRENCY, **changes}
    tree = {
        "name": "graded",
        "iterations": 0,
        "data": {"sets": {"dev": str(folder / "dev.qa.jsonl")}},
        "answer": {"predictions": {"dev": str(folder / "dev.predictions.jsonl")}},
        "engine": {"rows_per_part": 12},
        "evaluate": {"full_at": [], **evaluate},
    }
    return Recipe.model_validate(tree)


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has answers and no grades yet."""
    folder = tmp_path_factory.mktemp("answered")
    questions, predictions = [], []
    for i in range(ROWS):
        turns = [{"from": "human", "value": f"<video>\nwhat is number {i} ?"}, {"from": "gpt", "value": "a ball"}]
        questions.append({"id": f"q{i}", "video": f"v{i // 3}.mp4", "caption": "a ball", "conversations": turns})
        said = {"status": "success", "message": f"answer {i} here"}
        row = {"id": f"q{i}", "modal_path": "x", "query": "q", "answer": "a ball", "model_prediction": said}
        predictions.append(row)
    for name, rows in (("dev.qa.jsonl", questions), ("dev.predictions.jsonl", predictions)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe, run = recipe_of(folder, "http://127.0.0.1:1/v1"), str(folder / "run")
    outputs.alias(layout.policy(run, 0), start_manifest(recipe))
    for name in ("prepare", "answer"):
        STEPS[name](recipe, inputs_of(name, recipe, run, 0), run, 0)
    return folder


class Runs:
    """Processes that run evaluate over a copy of the run."""

    def __init__(self, answered: Path, folder: Path, url: str, **changes: Any) -> None:
        self.run = folder / "run"
        shutil.copytree(answered / "run", self.run)
        self._recipe = folder / "recipe.json"
        self._recipe.write_text(recipe_of(answered, url, **changes).canonical())
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.faults.grading", str(self._recipe), str(self.run)]
        log = (self.run.parent / "log").open("ab")
        with log:
            self._process = subprocess.Popen(command, stderr=log, env={**os.environ, "OPENAI_API_KEY": KEY})

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def kill_when(self, reached: Callable[[], bool]) -> None:
        """Starts a process and kills it then."""
        self.start()
        assert self._process is not None
        while not reached():
            assert self._process.poll() is None, self.log
            time.sleep(0.001)
        self.kill()

    def finish(self) -> None:
        self.start()
        assert self._process is not None
        assert self._process.wait(timeout=300) == 0, self.log

    @property
    def log(self) -> str:
        return (self.run.parent / "log").read_text()[-3000:]

    def grades(self) -> list[tuple[Any, ...]]:
        made = manifest.find(layout.graded(str(self.run), 0, "caption", "dev"))
        assert made is not None
        return [(g.id, g.status, g.score, g.reply, g.key, g.cost_usd) for g in rows_of(made, Grade)]

    def bought(self) -> int:
        folder = self.run.parent / "ledger"
        names = [path.stem for path in folder.rglob("*.json")]
        assert len(Ledger(str(folder)).find(names)) == len(names), "no entry is damaged"
        return len(names)


def answer(prompt: str, n: int) -> Answer:
    at = number(prompt)
    texts = {7: "prose, no score", 11: "", 13: "Explanation: x\nScore: 8"}
    return Answer(text=texts.get(at, f"Explanation: {at}\nScore: {at % 5 + 1}"), hang=0.02)


PRICES = {"price_prompt_usd": 2.0, "price_completion_usd": 8.0}


@pytest.fixture(scope="module")
def undisturbed(answered: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    with grader_server(answer) as server:
        runs = Runs(answered, tmp_path_factory.mktemp("undisturbed"), server.url, **PRICES)
        runs.finish()
        assert sorted(Counter(server.prompts).values()) == [1] * ROWS
    grades = runs.grades()
    assert [status for _, status, *_ in grades].count("unscored") == 3
    return grades


def test_killed_again_and_again_only_what_was_under_way_is_asked_twice(
    answered: Path, undisturbed: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    moments = sorted(random.Random(0).sample(range(1, ROWS - CONCURRENCY), 5))
    with grader_server(answer) as server:
        runs = Runs(answered, tmp_path, server.url, max_requests=ROWS + 100, **PRICES)
        for moment in moments:
            runs.kill_when(lambda at=moment: len(server.requests) >= at)  # type: ignore[misc]
        runs.finish()
        counts = Counter(server.prompts)
    assert len(counts) == ROWS
    assert sum(counts.values()) - ROWS <= CONCURRENCY * len(moments)
    assert runs.bought() == ROWS
    assert [grade[:4] for grade in runs.grades()] == [grade[:4] for grade in undisturbed]
    spent = spent_by(layout.account(str(runs.run)))
    assert sum(counts.values()) <= spent.requests <= sum(counts.values()) + 2 * CONCURRENCY * len(moments)
    assert not list(runs.run.rglob("unfinished.json"))


def test_a_killed_run_spends_no_more_than_its_ceiling(answered: Path, tmp_path: Path) -> None:
    ceiling = 30
    with grader_server(answer) as server:
        runs = Runs(answered, tmp_path, server.url, max_requests=ceiling)
        for moment in (5, 13):
            runs.kill_when(lambda at=moment: len(server.requests) >= at)  # type: ignore[misc]
        runs.start()
        process = runs._process
        assert process is not None
        assert process.wait(timeout=300) != 0
        assert "evaluate.max_requests is 30, and this run has sent " in runs.log
        assert ceiling - 2 * 2 * CONCURRENCY <= len(server.requests) <= ceiling


def test_with_batches_every_question_is_asked_exactly_once(
    answered: Path, undisturbed: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    runs: Runs
    killed = threading.Event()

    def created(n: int) -> Said | None:
        """The batch is made; its buyer never hears of it."""
        if killed.is_set():
            return None
        killed.set()
        runs.kill()
        return Said(cut=True)

    with grader_server(answer, batching=Batching(polls=12, created=created)) as server:
        runs = Runs(answered, tmp_path, server.url, batch=True, **PRICES)
        runs.kill_when(lambda: len(server.batching.files) >= 1)  # between upload and order, or later
        runs.start()
        _await(killed.is_set, runs)
        _await_end(runs)
        for looks in (2, 5):
            runs.kill_when(lambda at=looks: _looks(server) >= at)  # type: ignore[misc]
        runs.kill_when(lambda: runs.bought() >= 3)
        runs.finish()
    assert sorted(Counter(server.prompts).values()) == [1] * ROWS
    assert server.requests == []
    assert runs.bought() == ROWS
    assert [grade[:4] for grade in runs.grades()] == [grade[:4] for grade in undisturbed]
    spent = spent_by(layout.account(str(runs.run)))
    assert spent == (ROWS, pytest.approx(ROWS * (100 * 2e-6 + 10 * 8e-6) / 2))


def _looks(server: GraderServer) -> int:
    return sum(batch.get("looks", 0) for batch in server.batching.batches.values())


def _await(reached: Callable[[], bool], runs: Runs) -> None:
    deadline = time.monotonic() + 300
    while not reached():
        assert time.monotonic() < deadline, runs.log
        time.sleep(0.005)


def _await_end(runs: Runs) -> None:
    assert runs._process is not None
    runs._process.wait(timeout=300)
