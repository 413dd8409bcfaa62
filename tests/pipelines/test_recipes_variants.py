"""Variants of a recipe: one mechanism for ablations and baselines."""

import json
from pathlib import Path

import pytest
import yaml

from isr_dpo import config
from isr_dpo.config import Recipe
from isr_dpo.errors import RecipeError
from pipelines import recipe_files
from pipelines.__main__ import main

TINY = """
name: tiny
model: {start: "builtin:world", registered_name: isr-tiny}
data: {train: train.jsonl, sets: {dev: dev.jsonl, test: test.qa.official.jsonl}}
variants:
  literal: {judge.verdict: text, judge.orders: one}
  none: {retrospect.context: none}
  wrong: {judge.verdikt: text}
  imported: {iterations: 0, model.start: null, answer.predictions: "given/{set}.jsonl"}
"""


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    (tmp_path / "tiny.yaml").write_text(TINY)
    return str(tmp_path / "tiny.yaml")


def test_a_variant_is_the_recipe_with_its_keys_changed_under_a_name_of_its_own(tiny: str) -> None:
    plain, literal = recipe_files.load(tiny), recipe_files.load(tiny, variant="literal")
    assert (plain.name, plain.judge.verdict, plain.judge.orders) == ("tiny", "logits", "both")
    named = ["name=tiny-literal", "model.registered_name=isr-tiny-literal"]
    by_hand = config.parse(plain.canonical(), changes=["judge.verdict=text", "judge.orders=one", *named])
    assert literal == by_hand
    assert literal.digest() == by_hand.digest()
    assert "variants" not in literal.canonical()
    assert plain.digest() == config.parse(TINY.partition("variants:")[0]).digest()


def test_changes_come_after_the_variant(tiny: str) -> None:
    recipe = recipe_files.load(tiny, variant="none", changes=["retrospect.context=renew", "name=mine"])
    assert (recipe.retrospect.context, recipe.name) == ("renew", "mine")


def test_one_path_stands_for_the_prediction_files_of_all_sets(tiny: str) -> None:
    imported = recipe_files.load(tiny, variant="imported")
    assert imported.answer.predictions == {"dev": "given/dev.jsonl", "test": "given/test.jsonl"}
    fewer = recipe_files.load(tiny, variant="imported", changes=["data.sets={dev: dev.jsonl}"])
    assert fewer.answer.predictions == {"dev": "given/dev.jsonl"}
    assert config.parse(imported.canonical()) == imported
    with pytest.raises(RecipeError, match=r"'all\.jsonl': one path for all sets has \{set\} in it"):
        recipe_files.load(tiny, variant="imported", changes=["answer.predictions=all.jsonl"])


@pytest.mark.parametrize(
    ("variants", "said"),
    [
        ("[none]", "variants is a mapping of names, this is list"),
        ("{none: retrospect.context}", r"variants\.none is a mapping of dotted keys"),
        ("{none: {1: 2}}", r"variants\.none is a mapping of dotted keys"),
        ("{none: {name.x: 2}}", "variant 'none': name is a value, not a section"),
    ],
)
def test_variants_that_are_none_are_refused(variants: str, said: str) -> None:
    text = TINY.partition("variants:")[0] + f"variants: {variants}\n"
    with pytest.raises(RecipeError, match=said):
        config.parse(text, variant="none")


def test_a_wrong_key_of_a_variant_is_named_as_any_other(tiny: str) -> None:
    with pytest.raises(RecipeError, match=r"unknown key 'judge\.verdikt'; accepted here: by, verdict"):
        recipe_files.load(tiny, variant="wrong")


COMMANDS = [["compile"], *([name, "--run-uri", "run"] for name in ("run", "evaluate", "submit"))]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
def test_every_command_refuses_an_unknown_variant_and_lists_those_there_are(
    command: list[str], tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, tiny, "--variant", "non"]) == RecipeError.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("no variant 'non'; there are: literal, none, wrong, imported")


def test_every_command_makes_the_variant(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Recipe] = []

    def submitted(recipe: Recipe, *_: object, **__: object) -> int:
        taken.append(recipe)
        return 0

    monkeypatch.setattr("pipelines.local.run", submitted)
    monkeypatch.setattr("pipelines.submit.submit", submitted)
    monkeypatch.setattr("pipelines.package.write", submitted)
    for command in COMMANDS:
        assert main([*command, tiny, "--variant", "none"]) == 0
    assert [recipe.name for recipe in taken] == ["tiny-none"] * 4
    assert {recipe.retrospect.context for recipe in taken} == {"none"}
    assert [recipe.iterations for recipe in taken] == [9, 9, 0, 9]


def test_the_recipe_of_a_run_has_no_variants(tiny: str, tmp_path: Path) -> None:
    stored = json.loads(recipe_files.load(tiny, variant="none").canonical())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"recipe": stored}))
    assert recipe_files.load(str(tmp_path / "run")).name == "tiny-none"
    with pytest.raises(RecipeError, match=r"run\.json: no variant 'literal'; it has none"):
        recipe_files.load(str(tmp_path / "run"), variant="literal")


def test_a_recipe_without_variants_says_so() -> None:
    with pytest.raises(RecipeError, match=r"smoke\.yaml: no variant 'none'; it has none"):
        recipe_files.load("smoke", variant="none")


def test_the_estimate_takes_a_variant(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    from isr_dpo import cli

    given = ["--rows", "10", "--set-rows", "5", "--json"]
    assert cli.main(["estimate", tiny, "--variant", "none", *given]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["recipe"] == "tiny-none"
