"""Prompt sets: complete, sourced, and deaf to what model text contains."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isr_dpo import prompts
from isr_dpo.errors import RecipeError
from isr_dpo.stores import join, write_bytes


@pytest.mark.parametrize("name", ["lmm", "world"])
def test_every_packaged_template_says_where_it_comes_from(name: str) -> None:
    loaded = prompts.load(name)
    for template in (getattr(loaded, n) for n in prompts.NAMES):
        assert any(tag in template.source for tag in ("[P]", "[C]", "[O]")), template.name


def test_an_unknown_set_names_those_there_are() -> None:
    with pytest.raises(RecipeError, match=r"'llm' is neither a packaged set \(lmm, world\)"):
        prompts.load("llm")


def test_a_set_of_the_users_needs_every_template_with_its_fields(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"has no answer\.txt"):
        prompts.load(str(tmp_path))
    for name in prompts.NAMES:
        (tmp_path / f"{name}.txt").write_text("source: mine\n---\nhello {question}")
    with pytest.raises(RecipeError, match=r"describe\.txt uses fields \['question'\], it is given \[\]"):
        prompts.load(str(tmp_path))


def test_changing_a_template_changes_the_digest(tmp_path: Path) -> None:
    packaged = Path(prompts.__file__).parent / "lmm"
    for file in packaged.glob("*.txt"):
        (tmp_path / file.name).write_text(file.read_text())
    assert prompts.load(str(tmp_path)).digest == prompts.load("lmm").digest
    (tmp_path / "answer.txt").write_text("source: mine\n---\nQ: {question}")
    assert prompts.load(str(tmp_path)).digest != prompts.load("lmm").digest


@pytest.mark.parametrize("run_uri", ["moto"], indirect=True)
def test_a_set_of_the_users_may_lie_in_a_bucket(run_uri: str) -> None:
    with pytest.raises(RecipeError, match=r"has no answer\.txt"):
        prompts.load(run_uri)
    for file in (Path(prompts.__file__).parent / "lmm").glob("*.txt"):
        write_bytes(join(run_uri, file.name), file.read_bytes())
    assert prompts.load(run_uri) == prompts.load("lmm")


def test_values_are_never_expanded_again() -> None:
    text = prompts.load("lmm").judge.render(question="{answer_1}", answer_1="{answer_2}", answer_2="ok")
    assert "Question: {answer_1}" in text
    assert "Answer 1: {answer_2}" in text


@given(st.text(alphabet=st.sampled_from("<|/s>[INST] videoAnswer12:\n"), max_size=60))
def test_cleaning_leaves_no_delimiter_and_is_idempotent(text: str) -> None:
    cleaned = prompts.clean(text)
    assert prompts.clean(cleaned) == cleaned
    for delimiter in ("<s>", "</s>", "<video>", "[INST]", "[/INST]"):
        assert delimiter not in cleaned


def test_nested_delimiters_are_cleaned_too() -> None:
    assert "<video>" not in prompts.clean("<vid<video>eo>")
