"""A run's files as the analyses read them: rows, preferences, descriptions, answers and grades made up by the test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isr_dpo import layout
from isr_dpo.analyse.runs import Run, open_run
from isr_dpo.config import Recipe
from isr_dpo.manifest import Origin
from isr_dpo.outputs import Output, begin
from isr_dpo.records import Context, Grade, Judged, Outcome, Prediction, Preference, Question, TestRow, to_jsonl
from isr_dpo.stores import join, write_bytes

RULES = {"grader": "rule-based", "model": None, "prompt_digest": None, "served_models": [], "reading": "strict"}
GPT = {"grader": "openai", "model": "gpt-4o-mini", "prompt_digest": "ab" * 32, "served_models": [], "reading": "strict"}
CAPTION = "a red ball rolls past a dog"


def asked_row(
    number: int, *, question: str = "what colour is the ball ?", truth: str = "red", **changes: Any
) -> TestRow:
    """Question `q<number>`; two a video."""
    turns = [{"from": "human", "value": f"<video>\n{question}"}, {"from": "gpt", "value": truth}]
    row = {"id": f"q{number}", "video": f"v{number // 2}", "caption": CAPTION, "conversations": turns}
    return TestRow.model_validate({**row, **changes})


def judged_row(row_id: str, video: str, responses: tuple[str, str], winner: int | None, **changes: Any) -> Judged:
    outcome = "tie" if winner is None else "preferred"
    row = {"id": row_id, "video": video, "prompt": "what happens ?", "responses": responses, "winner": winner}
    return Judged.model_validate({**row, "outcome": outcome, **changes})


class RunFiles:
    """Writes a run piece by piece."""

    def __init__(self, folder: Path, name: str = "ours", *, uri: str | None = None, **changes: Any) -> None:
        self.uri = uri or str(folder / name)
        tree = {
            "name": name,
            "iterations": 3,
            "model": {"start": "a-folder", "registered_name": name},
            "data": {"train": "train.jsonl", "sets": {"dev": "dev.qa.jsonl"}},
            **changes,
        }
        recipe = Recipe.model_validate(tree)
        write_bytes(layout.run_file(self.uri), json.dumps({"recipe": recipe.model_dump(mode="json")}).encode())

    def open(self) -> Run:
        return open_run(self.uri)

    def dataset(
        self,
        sets: Mapping[str, Sequence[TestRow]],
        *,
        train: Sequence[tuple[str, str]] = (),
        seeds: Sequence[Preference] = (),
    ) -> None:
        """`train`: (id, video) of training rows."""
        questions = [Question(id=row_id, video=video, prompt="what happens ?") for row_id, video in train]
        files = {f"set-{name}.jsonl": to_jsonl(rows) for name, rows in sets.items()}
        files |= {"train-00000.jsonl": to_jsonl(questions), "seed-00000.jsonl": to_jsonl(seeds)}
        self._output(layout.dataset(self.uri), files)

    def round(self, index: int, rows: Sequence[Judged], contexts: Mapping[str, str] | None = None) -> None:
        from isr_dpo.preferences import preferences

        files = {"judged-00000.jsonl": to_jsonl(rows), "part-00000.jsonl": to_jsonl(preferences(rows))}
        self._output(layout.round_output(self.uri, index, "preferences"), files)
        if contexts is not None:
            made = [Context(video=video, context=text) for video, text in contexts.items()]
            self._output(layout.round_output(self.uri, index, "contexts"), {"part-00000.jsonl": to_jsonl(made)})

    def answers(self, policy: int, rows: Sequence[TestRow], texts: Sequence[str | None], *, name: str = "dev") -> None:
        """None: the model could not be asked."""
        made = [
            Prediction(
                id=row.id,
                modal_path=row.video,
                query=row.question,
                answer=row.answer,
                model_prediction=Outcome(
                    status="failed" if text is None else "success", message="too long" if text is None else text
                ),
            )
            for row, text in zip(rows, texts, strict=True)
        ]
        self._output(join(layout.answers(self.uri, policy), name), {"part-00000.jsonl": to_jsonl(made)})

    def grades(
        self,
        policy: int,
        rows: Sequence[TestRow],
        scores: Sequence[float | None],
        *,
        name: str = "dev",
        protocol: str = "caption",
        **grader: Any,
    ) -> None:
        """None: unscored."""
        made = [
            Grade(
                id=row.id,
                video=row.video,
                score=score,
                correct=None if score is None else score >= 3,
                words=2,
                status="unscored" if score is None else "scored",
                reply="",
            )
            for row, score in zip(rows, scores, strict=True)
        ]
        said = {"protocol": protocol, **RULES, **grader}
        files = {"part-00000.jsonl": to_jsonl(made), "protocol.json": json.dumps(said).encode()}
        self._output(layout.graded(self.uri, policy, protocol, name), files)

    def _output(self, uri: str, files: Mapping[str, bytes]) -> None:
        out = begin(uri, Origin("test", "test", {}, "", ""))
        assert isinstance(out, Output)
        for name, content in files.items():
            out.write(name, content)
        out.seal(rows=1, deterministic=True)
