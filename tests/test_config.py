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


def test_places_are_all_paths_and_uris_that_the_run_looks_at() -> None:
    small = config.parse(SMALL, changes=["data.sets={dev: d.jsonl, test: t.qa.jsonl}", "evaluate.full_at=[]"])
    assert small.places == {"model.start": "builtin:world", "data.train": "t.jsonl", "data.sets.dev": "d.jsonl"}
    changes = ["iterations=0", "model={}", "data.videos=v", "prompts=./p", "evaluate.ledger=l"]
    given = config.parse(SMALL, changes=[*changes, "answer={predictions: '{set}.jsonl'}"])
    assert given.places == {
        "prompts": "./p",
        "data.sets.dev": "d.jsonl",
        "data.videos": "v",
        "answer.predictions.dev": "dev.jsonl",
        "evaluate.ledger": "l",
    }


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
    assert "iterations = -1" in refused(SMALL + "iterations: -1\n")


def test_all_findings_are_reported_at_once() -> None:
    message = refused(SMALL + "iterations: -1\njudge: {tie_margin: 2}\n")
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


BENCHMARK = """
name: bench
iterations: 0
data: {sets: {msvd: msvd.qa.jsonl, tgif: tgif.qa.official.jsonl}}
"""


def test_a_benchmark_needs_sets_and_somebody_who_answers_and_nothing_else() -> None:
    for system in (
        "model: {start: a-folder}",
        "engine: {kind: openai, model: m}",
        "answer: {predictions: {msvd: m.jsonl, tgif: t.jsonl}}",
    ):
        recipe = config.parse(BENCHMARK + system)
        assert recipe.is_benchmark
        assert list(recipe.policies) == [0]
        assert recipe.sets_at(0) == ["msvd", "tgif"]
        assert recipe.leading_set == "msvd"
    assert "nobody answers: a benchmark" in refused(BENCHMARK)
    assert "data.sets is empty" in refused("name: b\niterations: 0\ndata: {}\nmodel: {start: a}\n")


def test_prediction_files_are_given_for_each_set_and_instead_of_a_model() -> None:
    lacking = "answer: {predictions: {msvd: m.jsonl}}"
    assert "answer.predictions has ['msvd'], data.sets has ['msvd', 'tgif']" in refused(BENCHMARK + lacking)
    both = "answer: {predictions: {msvd: m, tgif: t}}\nmodel: {start: a-folder}"
    assert "model.start (a-folder) and answer.predictions both say who answers" in refused(BENCHMARK + both)
    trained = SMALL + "answer: {predictions: {dev: d.jsonl}}\n"
    assert "evaluate them with iterations: 0, not 9" in refused(trained)


def test_rounds_need_what_a_benchmark_does_without() -> None:
    for key, text in {
        "data.train": SMALL.replace("train: t.jsonl, ", ""),
        "model.start": SMALL.replace('start: "builtin:world", ', ""),
        "model.registered_name": SMALL.replace(", registered_name: small", ""),
    }.items():
        assert refused(text) == f"r.yaml: {key} is missing; only a benchmark (iterations: 0) needs none"
    assert "iterations: 0, not 9" in refused(SMALL + "engine: {kind: openai, model: m}\n")


def test_dev_is_evaluated_at_every_policy_and_all_sets_where_the_recipe_says() -> None:
    two = SMALL.replace("{dev: d.jsonl}", "{dev: d.jsonl, test: t.jsonl}")
    recipe = config.parse(two)
    assert list(recipe.policies) == list(range(1, 10))
    assert [policy for policy in recipe.policies if recipe.sets_at(policy) == ["dev", "test"]] == [1, 5, 9]
    assert recipe.sets_at(2) == ["dev"]
    assert sorted(recipe.data_read.sets) == ["dev", "test"]
    assert config.parse(two, changes=["iterations=3", "evaluate.full_at=[9]"]).data_read == recipe.data


def test_what_no_policy_is_asked_is_not_read() -> None:
    two = SMALL.replace("{dev: d.jsonl}", "{dev: d.jsonl, test: t.jsonl}")
    assert sorted(config.parse(two + "evaluate: {full_at: []}\n").data_read.sets) == ["dev"]
    benchmark = config.parse(two + "iterations: 0\n")
    assert (benchmark.data_read.train, sorted(benchmark.data_read.sets)) == (None, ["dev", "test"])


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
