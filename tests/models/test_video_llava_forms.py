"""Video-LLaVA's forms: with and without the class token, and with attention over time. What engines and trainer make of
them is asked in the tests of the families and of DPO; here are the properties themselves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from isr_dpo import models
from isr_dpo.dpo.batch import Pairs
from isr_dpo.dpo.features import Features, tower_digest
from isr_dpo.dpo.forward import SharedPrefix
from isr_dpo.dpo.loss import dpo_loss
from isr_dpo.dpo.step import POLICY
from isr_dpo.errors import ModelError, RecipeError
from isr_dpo.models import Policy, video_llava
from isr_dpo.models.time_attention import TimeAttentionTower
from tests import families
from tests.dpo.jobs import frames_in, job_of, recipe_of, trained
from tests.dpo.ordinary import ROWS, TEMPLATE, both
from tests.families import TINY
from tests.models.clip_statement import Statement

EVERY = ("video_llava", *families.FORMS)
PATCHES = (TINY.pixels // TINY.patch) ** 2
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module", params=EVERY)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(form: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.build(tmp_path_factory.mktemp(form), form)


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    return models.load(folder, dtype="float64")


@pytest.fixture(scope="module")
def over_time(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.build(tmp_path_factory.mktemp("over_time"), "video_llava_over_time")


def clip(key: str) -> np.ndarray:
    return families.clip("video_llava", key)


def statement(model: Any, form: str) -> Statement:
    weights = model.model.video_tower.state_dict()
    return Statement(weights, heads=TINY.vision_heads, depth=TINY.vision_layers, over_time="over_time" in form)


def kept(form: str, states: Tensor) -> Tensor:
    """[T, N, d] of [T, class token and patches, d]."""
    return states if form == "video_llava" else states[:, 1:]


def stated_logits(model: Any, ids: Tensor, features: Tensor) -> Tensor:
    """[T, vocabulary], what the projector makes of `features` in the place of the video's tokens."""
    weights = model.state_dict()
    stem = "model.multi_modal_projector.linear_"
    inner = F.gelu(features @ weights[f"{stem}1.weight"].T + weights[f"{stem}1.bias"])
    projected = inner @ weights[f"{stem}2.weight"].T + weights[f"{stem}2.bias"]
    embedded = weights["model.language_model.embed_tokens.weight"][ids].clone()
    embedded[ids == model.config.video_token_id] = projected.flatten(0, 1)
    last = model.model.language_model(inputs_embeds=embedded[None]).last_hidden_state[0]
    logits: Tensor = last @ weights["lm_head.weight"].T
    return logits


@torch.no_grad()
def test_logits_are_those_of_the_plain_statement(policy: Policy, form: str) -> None:
    for key in ("v1", "v2"):
        encoded = policy.encode([policy.chat("what is the colour of the circle ?")], [clip(key)])
        ids, pixels = torch.tensor(encoded.ids[0]), encoded.videos[0]["pixel_values_videos"].double()
        assert int((ids == policy.model.config.video_token_id).sum()) == TINY.frames * (
            PATCHES + (form == "video_llava")
        )
        features = kept(form, statement(policy.model, form).states(pixels[0])[-2])
        expected = stated_logits(policy.model, ids, features)
        found = policy.model(input_ids=ids[None], pixel_values_videos=pixels).logits[0]
        assert expected.std() > 0.1
        assert (found - expected).abs().max() <= 1e-9


@torch.no_grad()
def test_several_feature_layers_lie_side_by_side(form: str) -> None:
    made, _, processor = families.parts(form)
    made.vision_feature_layer = [-2, 1, -1]
    torch.manual_seed(0)
    model = video_llava.VideoLlavaForConditionalGeneration(made).double().eval()
    pixels = video_llava.encode(processor, ["<video>\n"], [clip("v1")]).videos[0]["pixel_values_videos"].double()
    states = statement(model, form).states(pixels[0])
    expected = model.model.multi_modal_projector(kept(form, torch.cat([states[layer] for layer in (-2, 1, -1)], -1)))
    assert (model.model.get_video_features(pixels).pooler_output - expected).abs().max() <= 1e-9


@torch.no_grad()
def test_attention_over_time_stays_within_a_clip_and_sees_all_of_it(over_time: Path) -> None:
    model = models.load(over_time, dtype="float64").model
    tower = model.model.video_tower
    assert isinstance(tower, TimeAttentionTower)
    pixels = torch.randn(2 * TINY.frames, 3, TINY.pixels, TINY.pixels, dtype=torch.float64)
    before = tower(pixels).last_hidden_state
    pixels[TINY.frames - 1] += 1.0  # the last frame of the first clip
    moved = (tower(pixels).last_hidden_state - before).abs().amax((1, 2))
    assert bool((moved[: TINY.frames] > 1e-3).all())
    assert bool((moved[TINY.frames :] == 0).all())


def test_with_cached_features_the_loss_is_that_with_pixels(policy: Policy, form: str, tmp_path: Path) -> None:
    folder = tmp_path / tower_digest(policy)
    expected = both(policy, ROWS, clip)
    pairs = Pairs(ROWS, policy, template=TEMPLATE, frames=clip, features=Features(folder))
    fresh = models.load(Path(policy.model.name_or_path), dtype="float64")  # SharedPrefix changes its attention
    module = SharedPrefix(fresh, features=Features(folder))
    for cached in (False, True):
        assert all(video.encoded == cached for _, video in map(pairs.load, range(len(ROWS))))
        logps = torch.stack(module(pairs.batch([0, 1, 2])))
        losses = [dpo_loss(*found, *torch.full_like(found, -9.0), beta=0.5).loss for found in (logps, expected)]
        assert (losses[0] - losses[1]).abs().max() <= 1e-9
    stored = [load_file(path)["features"] for path in folder.glob("*.safetensors")]
    tokens = PATCHES + (form == "video_llava")
    assert [features.shape for features in stored] == [(TINY.frames, tokens, TINY.vision_hidden)] * 2


def test_caches_of_features_tell_the_forms_apart(policy: Policy, form: str) -> None:
    """The weights of the towers are the same, what they give is not."""
    before = tower_digest(policy)
    policy.model.config.video_class_token = form != "video_llava"
    try:
        assert tower_digest(policy) != before
    finally:
        policy.model.config.video_class_token = form == "video_llava"


def without_dtypes(tree: Any) -> Any:
    return {k: without_dtypes(v) for k, v in tree.items() if k != "dtype"} if isinstance(tree, dict) else tree


def test_a_saved_policy_keeps_its_properties_and_every_tensor(folder: Path, tmp_path: Path) -> None:
    models.save(models.load(folder), tmp_path)
    before, after = (json.loads((place / "config.json").read_text(encoding="utf-8")) for place in (folder, tmp_path))
    assert without_dtypes(after) == without_dtypes(before)
    assert after["architectures"] == [video_llava.ARCHITECTURE]
    first, second = load_file(folder / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    processors = [(place / "processor_config.json").read_text(encoding="utf-8") for place in (folder, tmp_path)]
    assert processors[0] == processors[1]


def test_the_policy_of_a_round_is_of_its_start_s_form(tmp_path: Path) -> None:
    """By DPO with adapters and with a feature cache, stored in bf16; the next round trains on from it."""
    shape = replace(TINY, frames=8, pixels=32, patch=16)  # the clips of the other training tests
    start = tmp_path / "start"
    models.save(
        models.load(families.build(tmp_path / "made", "video_llava_over_time", shape=shape), dtype="bfloat16"), start
    )
    recipe = recipe_of(dtype="bfloat16", lora_rank=2, lora_alpha=4, epochs=1)
    frames, held = frames_in(tmp_path / "frames"), None
    for number in (1, 2):
        here = tmp_path / str(number)
        features = str(tmp_path / "features")
        job = job_of(here, recipe, policy=start, frames=frames, features=features, masters=held, round_index=number)
        trained(here, recipe, job)
        policy, before = models.load(here / POLICY), models.load(start)
        frozen = [name for name, _ in policy.model.named_parameters() if name not in policy.trainable()]
        assert any("temporal_attn" in name for name in frozen)
        assert not any("image_tower" in name for name in frozen)
        weights, old = dict(policy.model.named_parameters()), dict(before.model.named_parameters())
        assert all(torch.equal(weights[name], old[name]) for name in frozen)
        assert not all(torch.equal(weights[name], old[name]) for name in policy.trainable())
        assert (policy.encode(["<video>\n"], [np.zeros((8, 32, 32, 3), np.uint8)]).ids[0]).count(5) == 8 * 4
        start, held = here / POLICY, str(here / "masters")
    (cache,) = (path for path in (tmp_path / "features").iterdir() if path.is_dir())
    assert {load_file(path)["features"].shape for path in cache.glob("*.safetensors")} == {(8, 4, shape.vision_hidden)}


def edited(folder: Path, copy: Path, change: Callable[[dict[str, Any]], object], name: str = "config.json") -> Path:
    """A copy of the policy with one of its JSON files changed."""
    shutil.copytree(folder, copy)
    tree = json.loads((copy / name).read_text(encoding="utf-8"))
    change(tree)
    (copy / name).write_text(json.dumps(tree), encoding="utf-8")
    return copy


def test_processor_and_model_that_disagree_about_the_class_token_are_refused(
    folder: Path, form: str, tmp_path: Path
) -> None:
    copy = edited(folder, tmp_path / "copy", lambda tree: tree.update(video_class_token=form != "video_llava"))
    with pytest.raises(ModelError, match=r"class token: num_additional_image_tokens is [01], .*video_class_token"):
        models.load(copy)
    with pytest.raises(ModelError, match="disagree about the class token"):
        models.family_of(copy).resizer(copy)  # what prepares the frames, before any model is loaded


def test_a_processor_for_another_number_of_frames_is_refused(over_time: Path, tmp_path: Path) -> None:
    copy = edited(over_time, tmp_path / "copy", lambda tree: tree["vision_config"].update(num_frames=3))
    with pytest.raises(ModelError, match=r"the processor takes 4 frames a clip .* over time 3"):
        models.load(copy)


def test_clips_of_another_length_are_refused_where_attention_goes_over_time(over_time: Path) -> None:
    policy = models.load(over_time)
    message = r"data\.frames: 8 frames a clip; this model's attention over time takes 4"
    longer = np.concatenate([clip("v1"), clip("v2")])
    with pytest.raises(RecipeError, match=message):
        policy.encode([policy.chat("which ?")], [longer])
    with pytest.raises(RecipeError, match=message):
        policy.family.resizer(over_time)(longer)
    with pytest.raises(RecipeError, match=message):
        policy.model.model.get_video_features(torch.zeros(1, 8, 3, TINY.pixels, TINY.pixels))


def test_attention_over_time_is_neither_left_out_nor_drawn_at_random(over_time: Path, tmp_path: Path) -> None:
    silent = edited(over_time, tmp_path / "silent", lambda tree: tree["vision_config"].update(add_time_attn=False))
    with pytest.raises(ModelError, match=r"has no place for 33 tensors, .*layers\.0\.temporal_attn"):
        models.load(silent)
    shutil.copytree(over_time, tmp_path / "without")
    weights = {name: tensor for name, tensor in load_file(over_time / WEIGHTS).items() if ".temporal_" not in name}
    save_file(weights, tmp_path / "without" / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="33 tensors are missing"):
        models.load(tmp_path / "without")


def test_weights_named_as_in_published_checkpoints_are_read_and_saved_so(tmp_path: Path) -> None:
    """`language_model.model.`, `video_tower.vision_model.`: the table that transformers keeps for its own class."""
    made = families.build(tmp_path / "made", "video_llava")
    names = {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
    published = {}
    for name, tensor in load_file(made / WEIGHTS).items():
        for ours, theirs in names.items():
            name = theirs + name.removeprefix(ours) if name.startswith(ours) else name
        stem, _, rest = name.removeprefix("model.").partition(".")
        inner = "" if not stem.endswith("_tower") or rest.startswith("vision_model.") else "vision_model."
        published[f"{stem}.{inner}{rest}"] = tensor
    copy = Path(shutil.copytree(made, tmp_path / "copy"))
    save_file(published, copy / WEIGHTS, metadata={"format": "pt"})
    policy = models.load(copy)
    expected = models.load(made).model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in policy.model.state_dict().items())
    models.save(policy, tmp_path / "saved")
    with safe_open(tmp_path / "saved" / WEIGHTS, framework="pt") as saved:
        assert set(saved.keys()) == published.keys()
