"""Runs whose policies are answered for, graded and registered, without a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from isr_dpo import layout, registry
from isr_dpo.mlflow_client import open_client
from isr_dpo.records import Grade, TestRow, to_jsonl
from isr_dpo.registry import Candidate
from tests.analyse.analysed_run import GPT, RULES, RunFiles, asked_row

ROWS = [asked_row(number, question=f"what of {number} ?") for number in range(40)]
RIGHT, WRONG = 5.0, 1.0
__all__ = ["GPT", "RIGHT", "ROWS", "RULES", "WRONG", "RegisteredRun", "aliases", "everything", "marks"]


def marks(*, right: int, of: int = len(ROWS), unscored: int = 0) -> list[float | None]:
    """The first `right` are right, the last `unscored` have no score."""
    return [*[RIGHT] * right, *[WRONG] * (of - right - unscored), *[None] * unscored]


class RegisteredRun(RunFiles):
    """A run at `place`, or `folder/name`, of model `m` in the MLflow database `uri`."""

    def __init__(
        self,
        uri: str,
        folder: Path,
        name: str = "ours",
        *,
        rows: Sequence[TestRow] = ROWS,
        place: str | None = None,
        set_name: str = "dev",
        **changes: Any,
    ) -> None:
        recipe: dict[str, Any] = {
            "model": {"start": "a-folder", "registered_name": "m"},
            "data": {"train": "train.jsonl", "sets": {"dev": str(folder / "dev.qa.jsonl")}},
            "tracking": {"uri": uri},
        }
        super().__init__(folder, name, uri=place, **recipe | changes)
        self.rows = rows
        self.set_name = set_name
        self.dataset({set_name: rows})
        if not (folder / "dev.qa.jsonl").exists():
            (folder / "dev.qa.jsonl").write_bytes(to_jsonl(rows))

    def policy(
        self,
        index: int,
        scores: Sequence[float | None] | None,
        *,
        words: int = 2,
        answered: bool = True,
        **grader: Any,
    ) -> str:
        """Answers, grades and a version; its number. No scores: the evaluation is pending."""
        if answered:
            self.answers(
                index, self.rows, [f"answer {index}" + " more" * (words - 2)] * len(self.rows), name=self.set_name
            )
        if scores is not None:
            said = self.open().recipe.protocol(self.set_name)
            self.graded(layout.graded(self.uri, index, said, self.set_name), scores, words=words, **grader)
        return self.register(index, scores)

    def graded(self, place: str, scores: Sequence[float | None], *, words: int = 2, **grader: Any) -> None:
        made = [
            Grade(
                id=row.id,
                video=row.video,
                score=score,
                correct=None if score is None else score >= 3,
                words=words,
                status="unscored" if score is None else "scored",
                reply="",
            )
            for row, score in zip(self.rows, scores, strict=True)
        ]
        said = {"protocol": "caption", **RULES, **grader}
        self._output(place, {"part-00000.jsonl": to_jsonl(made), "protocol.json": json.dumps(said).encode()})

    def register(self, index: int, scores: Sequence[float | None] | None, **changes: Any) -> str:
        known = [score for score in scores or [] if score is not None]
        accuracy = sum(score == RIGHT for score in known) / len(known) if known else None
        made = Candidate(
            run_uri=self.uri,
            index=index,
            uri=layout.policy(self.uri, index),
            digest=f"{self.uri}-{index}",
            dataset_digest="data",
            dev_digest="dev",
            grader="rule-based",
            dev_accuracy=accuracy,
            metrics={} if accuracy is None else {"accuracy": accuracy},
        )
        return registry.register(self.open().recipe, replace(made, **changes)).version


def aliases(uri: str, name: str = "m") -> dict[str, str]:
    found = open_client(uri).get_registered_model(name).aliases
    return {alias: str(version) for alias, version in found.items()}


def everything(uri: str, name: str = "m") -> tuple[object, ...]:
    """All that a promotion could change."""
    versions = open_client(uri).search_model_versions(f"name = '{name}'")
    kept = [(v.version, dict(v.tags), v.description, v.last_updated_timestamp) for v in versions]
    return aliases(uri, name), sorted(kept, key=lambda one: int(one[0]))
