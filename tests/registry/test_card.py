"""The model card: figures and origin in Markdown, nobody's text acting as Markdown."""

from __future__ import annotations

from typing import Any

import pytest

from isr_dpo.config import Recipe
from isr_dpo.registry import Candidate
from isr_dpo.registry.card import CHARACTERS, escaped, model_card

FIGURES = {"accuracy": 0.612, "accuracy_low": 0.589, "accuracy_high": 0.635, "score": 3.14, "rows": 2000.0}
HOSTILE = "[click](http://evil.example) <script>alert(1)</script> | `x` **b** \n# title ![i](y) &amp;"


def recipe(**changes: Any) -> Recipe:
    tree: dict[str, Any] = {
        "name": "small",
        "model": {"start": "hf://org/Video_LLaVA", "registered_name": "isr-dpo-7b"},
        "data": {"train": "train.jsonl", "sets": {"dev": "dev.qa.jsonl"}},
    }
    return Recipe.model_validate(tree | changes)


def candidate(**changes: Any) -> Candidate:
    made: dict[str, Any] = {
        "run_uri": "s3://bucket/runs/a",
        "index": 3,
        "uri": "s3://bucket/runs/a/policy-03",
        "digest": "d" * 64,
        "dataset_digest": "abcdef0123456789",
        "dev_digest": "0123456789abcdef",
        "grader": "gpt-4o-mini, prompt 5f1d2c3b",
        "dev_accuracy": 0.612,
        "metrics": FIGURES | {"score_low": 3.01, "score_high": 3.27, "words": 21.4, "unscored": 3.0},
        "code_version": "0.1.0+c0ffee",
    }
    return Candidate(**made | changes)


def test_it_says_what_it_is_from_what_and_how_well_it_does() -> None:
    card = model_card(recipe(), candidate())
    for said in (
        "# policy-03 of small",
        "| started from | hf\\://org/Video\\_LLaVA, float32 |",
        "the seed DPO (3 epochs), then 2 self-retrospective rounds of 1 epochs; iteration 3 of 9",
        "beta 0.1, learning rate 5e-07, all weights",
        "the policy itself, by logits in both orders, with its description of the video, improved on in each round",
        "| dev accuracy | 61.2 (58.9 to 63.5) % |",
        "| dev score | 3.14 (3.01 to 3.27) |",
        "| graded by | gpt\\-4o\\-mini, prompt 5f1d2c3b |",
        "| questions | 2000, 3 of them without a score |",
        "| words an answer | 21.4 |",
        'mlflow.pyfunc.load_model("models:/isr-dpo-7b@champion")',
    ):
        assert said in card, said


@pytest.mark.parametrize("context", ["none", "fixed", "renew", "retrospective", "shuffled"])
@pytest.mark.parametrize("by", ["self", "random", "longer"])
def test_it_says_who_judged_and_by_what(context: str, by: str) -> None:
    card = model_card(recipe(judge={"by": by}, retrospect={"context": context}), candidate())
    assert ("the policy itself" in card) == (by == "self")
    assert ("(ISR-DPO)" in card) == (by == "self" and context == "retrospective")


def test_a_fork_had_its_seed_dpo_elsewhere() -> None:
    forked = recipe(train={"seed_epochs": 0})
    assert "trained by | 2 self-retrospective rounds of 1 epochs; iteration 3" in model_card(forked, candidate())
    assert "trained by | nothing: it is the start itself; iteration 1" in model_card(forked, candidate(index=1))


def test_a_pending_evaluation_has_no_figures() -> None:
    card = model_card(recipe(), candidate(dev_accuracy=None, metrics={}, grader=""))
    assert "none yet: its evaluation is pending" in card
    assert "%" not in card


def test_what_others_wrote_shows_as_it_is() -> None:
    hostile = recipe(
        model={"start": HOSTILE, "registered_name": "m"},
        data={"train": HOSTILE, "sets": {"dev": HOSTILE}},
    )
    card = model_card(hostile, candidate(run_uri=HOSTILE, grader=HOSTILE, dataset_digest=HOSTILE))
    assert "<script" not in card
    assert "](http" not in card.replace("\\](", "")
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    assert all(len(line.replace("\\|", "").split("|")) == 4 for line in rows), "no cell breaks its row"
    assert card.count("\n# ") == 0


def test_markdown_of_the_escaped_text_is_the_text() -> None:
    from markdown_it import MarkdownIt

    for text in (HOSTILE, "a_b*c*", "1. x", "- x", "~~x~~", "a\\b", "::x::", "https://a.example/?a=1&b=<2>"):
        line = " ".join(text.split())
        html = MarkdownIt("commonmark").render(f"x {escaped(text)}")
        told = html.removeprefix("<p>x ").removesuffix("</p>\n")
        for entity, mark in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
            told = told.replace(entity, mark)
        assert told == line


def test_it_fits_whatever_is_put_in() -> None:
    long = "&" * 10_000
    huge = recipe(model={"start": long, "registered_name": "m"}, data={"train": long, "sets": {"dev": long}})
    card = model_card(huge, candidate(run_uri=long, grader=long, dataset_digest=long, code_version=long))
    assert len(card) <= CHARACTERS
    assert "…" in card
