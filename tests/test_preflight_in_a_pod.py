"""In a pod of a placement preflight has no key of the grader's."""

import logging
from pathlib import Path

import pytest

from isr_dpo import config, preflight
from isr_dpo.config import Recipe
from isr_dpo.errors import RecipeError


def graded_by_a_model(folder: Path) -> Recipe:
    return config.parse(
        "{name: t, model: {start: nowhere, registered_name: t}, data: {train: a.jsonl, sets: {dev: b.jsonl}}, "
        f"evaluate: {{grader: openai}}, tracking: {{uri: 'sqlite:///{folder}/none/none.db'}}}}"
    )


def findings(recipe: Recipe, folder: Path) -> str:
    with pytest.raises(RecipeError) as raised:
        preflight.check(recipe, str(folder / "run"))
    return str(raised.value)


def test_a_missing_key_is_a_finding_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv(preflight.PLACEMENT, raising=False)
    assert "OPENAI_API_KEY is not set" in findings(graded_by_a_model(tmp_path), tmp_path)


def test_a_missing_key_is_none_in_a_pod_and_the_log_says_that_nobody_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv(preflight.PLACEMENT, "gke")
    with caplog.at_level(logging.INFO, logger="isr_dpo"):
        said = findings(graded_by_a_model(tmp_path), tmp_path)
    assert "OPENAI_API_KEY" not in said
    assert "a.jsonl" in said
    assert "the grader is not asked" in caplog.text
