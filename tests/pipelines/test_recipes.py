"""The packaged recipes say what they promise."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from isr_dpo import estimate as estimates
from isr_dpo import prompts
from isr_dpo.analyse import tables
from isr_dpo.config import Recipe, flatten, parse
from isr_dpo.engines import Choice, Choose, Progress, Sample, Text
from isr_dpo.engines.fake import FakeEngine
from isr_dpo.estimate.shapes import shape_of
from isr_dpo.judge import judge
from isr_dpo.records import Responses
from pipelines import recipe_files
from pipelines.__main__ import main

FILES = {path.stem: path for path in recipe_files.FOLDER.glob("*.yaml")}
VARIANTS = [
    (name, variant)
    for name, path in sorted(FILES.items())
    for variant in yaml.safe_load(path.read_text(encoding="utf-8")).get("variants", {})
]
TAG = re.compile(r"# \[[PCO]\]")
BASELINES = {
    "Video-ChatGPT": "video-chatgpt",
    "LLaMA-VID": "llama-vid",
    "Chat-UniVi": "chat-univi",
    "VideoChat2": "videochat2",
    "Video-LLaVA": "video-llava",
    "VLM-RLAIF": "vlm-rlaif",
    "PLLaVA": "pllava",
    "LLaVA-NeXT-DPO": "llava-next-dpo",
    "LLaVA-Hound-DPO": "llava-hound-dpo",
    "ISR-DPO": "isr-dpo-9",
}
"""The paper's systems and the variants of `baselines`."""


def written(name: str, variant: str) -> dict[str, Any]:
    """The keys of a variant as they stand in the file."""
    found: dict[str, Any] = yaml.safe_load(FILES[name].read_text(encoding="utf-8"))["variants"][variant]
    return found


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_variant_is_valid_and_differs_by_what_it_says_alone(name: str, variant: str) -> None:
    plain, varied = recipe_files.load(name), recipe_files.load(name, variant=variant)
    assert varied.name == f"{name}-{variant}"
    assert len(written(name, variant)) <= 4
    before, after = flatten(plain.model_dump(mode="json")), flatten(varied.model_dump(mode="json"))
    changed = {key for key in before.keys() | after.keys() if before.get(key, "-") != after.get(key, "-")}
    named = {"name", "model.registered_name", "engine.fused"}  # the last follows engine.kind
    assert all(key in named or any(f"{key}.".startswith(f"{k}.") for k in written(name, variant)) for key in changed)


def test_no_variant_is_longer_than_three_lines() -> None:
    for name, path in FILES.items():
        found = yaml.compose(path.read_text(encoding="utf-8"))
        (variants,) = [value for key, value in found.value if key.value == "variants"] or [None]
        for key, value in variants.value if variants else []:
            assert value.end_mark.line - key.start_mark.line < 3, f"{name}: {key.value}"


def test_the_paper_s_run_has_the_paper_s_values() -> None:
    recipe = recipe_files.load("paper-7b")
    assert (recipe.iterations, recipe.train.seed_epochs, recipe.train.epochs) == (9, 3, 1)
    assert (recipe.generate.temperature, recipe.retrospect.context, recipe.judge.by) == (0.7, "retrospective", "self")
    assert (recipe.train.beta, recipe.train.learning_rate, recipe.train.warmup_fraction) == (0.1, 5e-7, 0.1)
    assert (recipe.train.batch_pairs, recipe.train.zero_stage, recipe.model.dtype) == (128, 2, "bfloat16")
    assert (recipe.train.reference, recipe.train.projector, recipe.train.lora_rank) == ("round_start", False, None)
    assert (recipe.data.frames, recipe.answer.max_new_tokens, recipe.evaluate.full_at) == (8, 1024, (1, 5, 9))
    assert recipe.sets_at(2) == ["dev"]
    assert len(recipe.sets_at(5)) == 11


def test_every_value_of_the_paper_s_run_says_where_it_is_from() -> None:
    """A comment with its tag at its line, or above the list it stands in; prices and addresses have no source."""
    text = FILES["paper-7b"].read_text(encoding="utf-8")
    free = re.compile(r"\s*(videos|registered_name|price_\w+|name): ")
    lines = [line for line in text.splitlines() if re.match(r"\s*[a-z_0-9]+: \S", line) and not free.match(line)]
    untagged = [line for line in lines if not TAG.search(line) and "s3://my-bucket/data/" not in line]
    assert untagged == [
        "  none: {retrospect.context: none}",
        "  fixed: {retrospect.context: fixed}",
        "  renew: {retrospect.context: renew}",
    ]
    assert "# Table 5's designs [P]" in text


@pytest.mark.parametrize("variant", [None, "literal", "none", "fixed", "renew", "shuffled"])
@pytest.mark.parametrize("place", ["gke", "eks", "aks"])
def test_the_paper_s_run_fits_its_gpus_and_its_limits(place: str, variant: str | None) -> None:
    """With 2,048 video tokens a clip, 17k pairs, 5,000 questions a set, on nodes of 8 A100-80G."""
    recipe = recipe_files.load("paper-7b", variant=variant)
    model = shape_of({"architectures": ["VideoLlavaForConditionalGeneration"]}, frames=8, video_tokens=2048)
    questions = {name: 2_000 if name == "dev" else 5_000 for name in recipe.data.sets}
    made = estimates.estimate(
        recipe,
        estimates.read_placement(Path("pipelines/placements") / f"{place}.yaml"),
        counts=estimates.Counts(rows=17_000, seed=17_000, videos=17_000, sets=questions, clips=40_000),
        model=model,
    )
    assert made.findings() == []
    (train,) = [step for step in made.steps if step.step == "train"]
    assert train.memory is not None
    assert train.memory < 0.8 * 80e9


def test_the_ablations_are_table_5_s_designs_and_the_control() -> None:
    designs = {v: recipe_files.load("paper-7b", variant=v).retrospect.context for n, v in VARIANTS if n == "paper-7b"}
    assert {v: context for v, context in designs.items() if v != "literal"} == {
        design: design for design in ("none", "fixed", "renew", "shuffled")
    }
    assert designs["literal"] == "retrospective"


class Writer(FakeEngine):
    """Writes verdicts and keeps what it was asked; nobody reads its probabilities."""

    def __init__(self) -> None:
        self.asked: list[Sample] = []

    def sample(self, requests: Sequence[Sample], progress: Progress = lambda _: None) -> list[list[Text]]:
        self.asked += requests
        return [[Text("2", 1, "stop")] for _ in requests]

    def choose(self, requests: Sequence[Choose], progress: Progress = lambda _: None) -> list[Choice]:
        raise AssertionError(requests)


def test_the_literal_variant_samples_one_verdict_in_one_order() -> None:
    settings, engine = recipe_files.load("paper-7b", variant="literal").judge, Writer()
    row = Responses(id="q", video="v", prompt="what ?", responses=("a", "b"), finish=("stop", "stop"), seeds=(1, 2))
    held: dict[str, Any] = {"contexts": {"v": "c"}, "prompts": prompts.load("lmm"), "seed": 0, "round_index": 1}
    (judged,) = judge([row], engine, settings=settings, **held)
    assert (judged.winner, judged.probabilities) == (1, ((0.0, 1.0),))
    (asked,) = engine.asked
    assert (asked.temperature, len(asked.seeds)) == (0.7, 1)


def test_the_public_test_files_are_the_same_in_all_recipes_that_read_them() -> None:
    sets = [dict(recipe_files.load(name).data.sets) for name in ("benchmarks", "baselines", "paper-7b")]
    del sets[2]["dev"]
    assert sets[0] == sets[1] == sets[2]
    assert len(sets[0]) == 10


def test_every_system_of_the_paper_s_tables_has_a_variant_of_baselines() -> None:
    reported = {row.system.partition(",")[0] for number in (1, 2, 3) for row in tables.table(number).rows}
    assert reported == set(BASELINES)
    variants = {variant for name, variant in VARIANTS if name == "baselines"}
    assert variants == {*BASELINES.values(), "served"}


def test_a_baseline_answers_from_a_folder_an_endpoint_or_files() -> None:
    by_path = {"llava-hound-dpo", "isr-dpo-9", "video-llava", "llava-next-dpo"}
    for variant in [variant for name, variant in VARIANTS if name == "baselines"]:
        recipe = recipe_files.load("baselines", variant=variant)
        who = (recipe.model.start is not None, bool(recipe.answer.predictions), recipe.engine.kind == "openai")
        assert who == (variant in by_path, variant not in {*by_path, "served"}, variant == "served")
        assert recipe.is_benchmark


def test_a_variant_travels_as_an_ordinary_recipe() -> None:
    recipe = recipe_files.load("baselines", variant="pllava")
    assert Recipe.model_validate(json.loads(recipe.canonical())) == parse(recipe.canonical()) == recipe


@pytest.mark.parametrize(("name", "variant", "place"), [("paper-7b", "fixed", "aks"), ("baselines", "pllava", "gke")])
def test_a_variant_compiles_under_its_name(name: str, variant: str, place: str, tmp_path: Path) -> None:
    """A sample: all variants have the graph of their recipe, or of its design, and those are compiled elsewhere."""
    output = tmp_path / "package.yaml"
    assert main(["compile", name, "--variant", variant, "--placement", place, "-o", str(output)]) == 0
    assert f"isr-dpo-{name}-{variant}" in output.read_text(encoding="utf-8")
