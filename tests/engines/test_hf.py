"""The embedded engine: results depend on the request alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from isr_dpo.engines import Choice, Choose, Sample, Text
from isr_dpo.engines.hf import HFEngine, _Row
from isr_dpo.errors import ModelError
from isr_dpo.models import Policy
from tests import families
from tests.families import FAMILIES, build
from tests.tiny import clip, make_policy

WORLD = "world"
"""The demo's own Video-LLaVA and words, beside a tiny policy of each family."""


@pytest.fixture(scope="module", params=[WORLD, *FAMILIES])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(family)
    return make_policy(folder) if family == WORLD else build(folder, family)


@pytest.fixture(scope="module")
def engine(folder: Path, family: str) -> HFEngine:
    return opened(folder, family, batch_rows=4)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> HFEngine:
    return opened(make_policy(tmp_path_factory.mktemp(WORLD)), batch_rows=4)


def opened(folder: Path, family: str = WORLD, *, batch_rows: int) -> HFEngine:
    return HFEngine(folder, frames_of(family), dtype="float32", device="cpu", batch_rows=batch_rows)


def frames_of(family: str) -> Callable[[str], np.ndarray]:
    return clip if family == WORLD else functools.partial(families.clip, family)


def prompted(policy: Policy, text: str, frames: np.ndarray) -> dict[str, torch.Tensor]:
    """Inputs of one row, as the family's own processor makes them."""
    encoded = policy.encode([text], [frames])
    ids = torch.tensor(encoded.ids)
    mask = torch.ones_like(ids)
    return {"input_ids": ids, "attention_mask": mask, **policy.family.inputs(policy.model, ids), **encoded.videos[0]}


def requests() -> list[Sample]:
    words = "what colour is the object ? " * 3
    return [Sample(f"v{i}", words[: 6 * (i % 12) + 4], (i, 100 + i), 0.7 if i % 3 else 0.0, 0.9, 6) for i in range(11)]


def test_a_row_gives_the_same_texts_whatever_else_is_in_the_call(engine: HFEngine) -> None:
    together = engine.sample(requests())
    alone = [engine.sample([request])[0] for request in requests()]
    backwards = engine.sample(requests()[::-1])[::-1]
    assert together == alone == backwards


def test_sampled_draws_differ_by_seed_and_greedy_ones_do_not(engine: HFEngine) -> None:
    hot, cold = engine.sample([replace(requests()[1], temperature=2.0), replace(requests()[1], temperature=0.0)])
    assert hot[0] != hot[1]
    assert cold[0] == cold[1]


def test_greedy_equals_the_models_own_generate(engine: HFEngine, family: str) -> None:
    request = replace(requests()[4], temperature=0.0, seeds=(0,))
    policy = engine._policy
    inputs = prompted(policy, policy.chat(request.prompt), frames_of(family)(request.video))
    out = policy.model.generate(**inputs, do_sample=False, max_new_tokens=6)
    expected = policy.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert engine.sample([request])[0][0].text == expected


def test_draws_follow_the_tempered_distribution(world: HFEngine) -> None:
    request = Sample("v1", "what ?", tuple(range(600)), 0.7, 1.0, 1)
    policy = world._policy
    with torch.no_grad():
        logits = policy.model(**prompted(policy, policy.chat("what ?"), clip("v1"))).logits[0, -1]
    expected = (logits.double() / 0.7).softmax(-1)
    drawn = [text.text for text in world.sample([request])[0]]
    words = [i for i in range(len(expected)) if i not in policy.tokenizer.all_special_ids]
    top = max(words, key=lambda i: float(expected[i]))
    share = drawn.count(policy.tokenizer.decode([top])) / len(drawn)
    assert abs(share - float(expected[top])) < 4 * (0.25 / 600) ** 0.5


def test_choose_reads_the_labels_after_the_cue(engine: HFEngine, family: str) -> None:
    policy = engine._policy
    choice = engine.choose([Choose("v3", "which is better ?", ("1", "2"), 0, "choice")])[0]
    text = policy.chat("which is better ?") + " choice"
    with torch.no_grad():
        logits = policy.model(**prompted(policy, text, frames_of(family)("v3"))).logits[0, -1]
    labels = policy.tokenizer.convert_tokens_to_ids(["1", "2"])
    expected = logits.double().softmax(-1)[labels].tolist()
    assert choice.probabilities == pytest.approx(expected, abs=1e-5)
    assert choice.rationale == ""


def test_choose_lets_the_model_write_first_and_cuts_at_its_cue(engine: HFEngine) -> None:
    request = Choose("v3", "which is better ?", ("1", "2"), 4, "choice")
    choice = engine.choose([request])[0]
    greedy = engine.sample([Sample("v3", "which is better ?", (0,), 0.0, 1.0, 4)])[0][0].text
    assert choice.rationale == greedy.split("choice")[0].strip()
    assert engine.choose([request, replace(request, video="v4")])[0] == choice


def test_labels_that_are_not_single_tokens_are_refused(world: HFEngine) -> None:
    with pytest.raises(ModelError, match=r"labels .* are not single tokens"):
        world.choose([Choose("v3", "which ?", ("1", "1 2"), 0, "choice")])


def test_a_prompt_longer_than_the_context_is_not_asked_and_stops_no_other(engine: HFEngine) -> None:
    long, short = Sample("v9", "what " * 600, (0, 1), 0.7, 1.0, 2), requests()[1]
    assert engine.sample([long, short]) == [[Text("", 0, "too_long")] * 2, *engine.sample([short])]
    asked = Choose("v9", "what " * 600, ("1", "2"), 2, "choice")
    other = replace(asked, prompt="which is better ?")
    assert engine.choose([asked, other]) == [Choice((0.0, 0.0), "", "too_long"), *engine.choose([other])]


def test_a_prompt_is_asked_as_long_as_its_answer_fits(engine: HFEngine) -> None:
    """A text ends where the context does; a choice needs room for its rationale and its cue."""
    room = [engine._room(engine._prompts([Sample("v9", "what " * n, (0,), 0.0, 1.0, 1)])[0]) for n in (1, 2)]
    words = 1 + (room[0] - 4) // (room[0] - room[1])  # leaves 4 tokens
    (text,) = engine.sample([Sample("v9", "what " * words, (0,), 0.0, 1.0, 9)])[0]
    assert (text.tokens, text.finish) == (4, "length") or (text.tokens < 4 and text.finish == "stop")
    cue = len(engine._tokens.labels("choice", ("1", "2")).cue)
    fits = [Choose("v9", "what " * words, ("1", "2"), tokens, "choice") for tokens in (3 - cue, 4 - cue)]
    assert [choice.finish for choice in engine.choose(fits)] == ["stop", "too_long"]


def test_the_draws_of_a_row_share_one_run_of_its_prompt(world: HFEngine) -> None:
    seen: list[int] = []
    embedding = world._policy.model.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    try:
        world.sample([Sample(video, "what ?", (1, 2), 0.7, 1.0, 3) for video in ("v1", "v2")])
    finally:
        handle.remove()
    assert seen[0] == 2  # prompts
    assert set(seen[1:]) == {4}  # draws


def test_odd_numbers_of_draws_are_those_of_single_draws(world: HFEngine) -> None:
    request = Sample("v1", "what colour ?", tuple(range(7)), 0.9, 1.0, 5)
    alone = [world.sample([replace(request, seeds=(seed,))])[0][0] for seed in request.seeds]
    assert [text.text for text in world.sample([request])[0]] == [text.text for text in alone]


def test_a_checkpoints_generation_settings_leave_the_distribution_alone(world: HFEngine) -> None:
    """A penalty in generation_config.json would make the draws another policy's."""
    before = world.sample(requests())
    settings = world._policy.model.generation_config
    settings.repetition_penalty, settings.top_k = 5.0, 1
    try:
        assert world.sample(requests()) == before
    finally:
        settings.repetition_penalty, settings.top_k = None, None


def test_results_do_not_depend_on_the_batch_size(folder: Path, family: str, engine: HFEngine) -> None:
    texts = [[t.text for t in row] for row in engine.sample(requests())]
    assert [[t.text for t in row] for row in opened(folder, family, batch_rows=7).sample(requests())] == texts


def test_clips_of_different_sizes_do_not_share_a_batch(tmp_path: Path) -> None:
    """Their towers' work would be of another shape, and in fp32 a row's last bits with it."""

    def frames(video: str) -> np.ndarray:
        whole = families.clip("qwen2_5_vl", video)
        return whole if video in ("v1", "v3") else whole[:, :28]

    engine = HFEngine(build(tmp_path, "qwen2_5_vl"), frames, dtype="float32", device="cpu", batch_rows=4)
    asked = [Choose(f"v{i}", "which is better ? " * i, ("1", "2"), 2, "choice") for i in range(1, 6)]
    shapes = [{row.prompt.shape for row in batch.rows} for batch in engine._batches(rows_of(engine, asked))]
    assert all(len(shape) == 1 for shape in shapes)
    assert engine.choose(asked) == [engine.choose([request])[0] for request in asked]


def rows_of(engine: HFEngine, asked: list[Choose]) -> list[_Row]:
    return [_Row(index, 0, prompt) for index, prompt in enumerate(engine._prompts(asked))]


def test_an_unsupported_or_missing_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        opened(tmp_path, batch_rows=1)
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel is not supported; supported: VideoLlava"):
        opened(tmp_path, batch_rows=1)


def test_damaged_weights_are_a_model_error(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    folder = make_policy(tmp_path_factory.mktemp(WORLD))
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded as a VideoLlavaForConditionalGeneration"):
        opened(tmp_path, batch_rows=1)
