"""The recipe refuses what is impossible, by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from isr_dpo import config
from isr_dpo.errors import RecipeError

SMALL = """
name: small
model: {start: "builtin:world", registered_name: small}
data: {train: t.jsonl, sets: {dev: d.jsonl}}
"""


def refused(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        config.parse(text, where="r.yaml")
    return str(caught.value)


def test_defaults_are_the_papers_where_it_speaks() -> None:
    recipe = config.parse(SMALL)
    assert recipe.iterations == 9
    assert recipe.generate.temperature == 0.7
    assert recipe.data.frames == 8
    assert recipe.retrospect.context == "retrospective"


def test_an_unknown_key_is_named_with_the_accepted_ones() -> None:
    message = refused(SMALL + "train: {lr: 1.0e-4}\n")
    assert "unknown key 'train.lr'" in message
    assert "learning_rate" in message
    assert message.startswith("r.yaml:")
    assert "unknown key 'iteration'" in refused(SMALL + "iteration: 3\n")


def test_an_impossible_value_is_named_with_what_is_accepted() -> None:
    assert "retrospect.context = 'maybe'" in refused(SMALL + "retrospect: {context: maybe}\n")
    assert "'retrospective'" in refused(SMALL + "retrospect: {context: maybe}\n")
    assert "generate.temperature = -1" in refused(SMALL + "generate: {temperature: -1}\n")
    assert "iterations = 0" in refused(SMALL + "iterations: 0\n")


def test_all_findings_are_reported_at_once() -> None:
    message = refused(SMALL + "iterations: 0\njudge: {tie_margin: 2}\n")
    assert "iterations" in message
    assert "judge.tie_margin" in message


def test_rounds_are_fused_where_vllm_runs_them_unless_the_recipe_says_otherwise() -> None:
    assert not config.parse(SMALL).engine.fused
    assert config.parse(SMALL + "engine: {kind: vllm}\n").engine.fused
    assert not config.parse(SMALL + "engine: {kind: vllm, fused: false}\n").engine.fused
    assert config.parse(SMALL + "engine: {fused: true}\n").engine.fused
    assert "engine.kind = 'tgi'" in refused(SMALL + "engine: {kind: tgi}\n")


def test_keys_that_must_agree() -> None:
    assert "evaluate.dev names 'val'" in refused(SMALL + "evaluate: {dev: val}\n")


def test_changes_set_dotted_keys_and_are_checked_like_the_recipe() -> None:
    recipe = config.parse(SMALL, changes=["train.beta=0.3", "judge.by=random", "evaluate.full_at=[1, 2]"])
    assert (recipe.train.beta, recipe.judge.by, recipe.evaluate.full_at) == (0.3, "random", (1, 2))
    for change, said in {"train.bet=1": "train.bet", "train.beta": "key=value", "name.x=1": "not a section"}.items():
        with pytest.raises(RecipeError, match=said.replace(".", r"\.")):
            config.parse(SMALL, changes=[change])


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "", "just words"])
def test_text_that_is_no_recipe(text: str) -> None:
    assert refused(text).startswith("r.yaml:")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nothing\.yaml: cannot be read: No such file"):
        config.load(tmp_path / "nothing.yaml")


def test_the_canonical_form_is_the_recipe() -> None:
    recipe = config.parse(SMALL)
    assert config.parse(recipe.canonical()) == recipe
    assert recipe.digest() == config.parse(recipe.canonical()).digest()
    assert recipe.digest() != config.parse(SMALL + "seed: 1\n").digest()


def test_a_section_holds_its_keys_alone() -> None:
    section = config.parse(SMALL).section(("seed", "judge", "train.beta"))
    assert section["seed"] == 0
    assert section["judge.by"] == "self"
    assert section["train.beta"] == 0.1
    assert not any(key.startswith(("generate", "train.learning_rate")) for key in section)


def test_importing_config_loads_nothing_heavy() -> None:
    code = (
        "import sys, isr_dpo.config, isr_dpo.steps\n"
        "heavy = {'torch', 'transformers', 'kfp', 'boto3', 'mlflow', 'openai', 'matplotlib', 'decord'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
