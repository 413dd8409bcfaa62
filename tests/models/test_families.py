"""The model families, and Video-LLaVA's forms: each computes with cached features what the model does with pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from isr_dpo import models
from isr_dpo.errors import ModelError, RecipeError
from isr_dpo.models import Policy, common, video_llava
from isr_dpo.models.common import Encoded, batch_videos, feed, video_features
from tests.families import BENCH, FAMILIES, FORMS, TINY, VIDEO_LLAVA_7B, build, clip, parts
from tests.family_parts import Shape

VIDEO_TOKENS = {
    "video_llava": 4 * (4 * 4 + 1),  # frames x (patches and the class token)
    "video_llava_patches": 4 * 4 * 4,
    "video_llava_over_time": 4 * 4 * 4,
    "llava_next_video": 4 * 2 * 2,  # patches averaged 2 x 2
    "llava_onevision": 4 * 2 * 2 + 1,  # patches shrunk 2 x 2, and a newline
    "qwen2_5_vl": 2 * 3 * 4,  # pairs of frames x tokens of 28 x 28 pixels
    "qwen3_vl": 2 * 3 * 4,  # the same, of 32 x 32 pixels
}


@pytest.fixture(scope="module", params=[*FAMILIES, *FORMS])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp(family), family)


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    return models.load(folder, dtype="float64")


@pytest.fixture(scope="module")
def encoded(policy: Policy, family: str) -> Encoded:
    """Two prompts of different lengths, each about a clip of its own."""
    texts = [policy.chat("what is the colour of the circle ?"), policy.chat("which ?")]
    return policy.encode(texts, [clip(family, "v1"), clip(family, "v2")])


def towers(policy: Policy, encoded: Encoded) -> list[dict[str, Tensor]]:
    return [policy.family.tower(policy.model, video) for video in encoded.videos]


def with_pixels(policy: Policy, ids: Tensor, video: dict[str, Tensor]) -> Tensor:
    """Logits [B, T, V] of an ordinary forward pass, which runs the tower and places the tokens itself."""
    inputs = common.place(policy.model, video)
    if "video_grid_thw" in video:
        inputs["mm_token_type_ids"] = torch.tensor(policy.processor.create_mm_token_type_ids(ids.tolist()))
    logits: Tensor = policy.model(input_ids=ids, **inputs).logits
    return logits


def with_features(policy: Policy, ids: Tensor, features: Any, positions: Tensor) -> Tensor:
    logits: Tensor = policy.model(**feed(policy.model, ids, features), position_ids=positions).logits
    return logits


def as_position_ids(rows: Tensor) -> Tensor:
    """[A, T] -> what the model takes: [1, T], or [3, 1, T]."""
    return rows if len(rows) == 1 else rows[:, None]


def flat(features: Any) -> list[Tensor]:
    """Every level of features as [tokens, D]."""
    levels = [features.pooler_output, *(getattr(features, "deepstack_features", None) or [])]
    return [level.flatten(0, -2) if isinstance(level, Tensor) else torch.cat([*level]).view(-1, 32) for level in levels]


def test_a_folder_is_opened_by_the_family_that_its_config_names(folder: Path, family: str, policy: Policy) -> None:
    assert models.family_of(folder).__name__ == f"isr_dpo.models.{'video_llava' if family in FORMS else family}"
    assert type(policy.model).__name__ == policy.family.ARCHITECTURE
    assert policy.family.frames(folder) == TINY.frames


def test_a_prompt_holds_one_token_for_each_feature(policy: Policy, family: str, encoded: Encoded) -> None:
    for ids, video in zip(encoded.ids, encoded.videos, strict=True):
        tokens = ids.count(policy.model.config.video_token_id)
        features = policy.family.project(policy.model, [policy.family.tower(policy.model, video)])
        assert tokens == VIDEO_TOKENS[family] == len(flat(features)[0])
    assert len(encoded.ids[0]) > len(encoded.ids[1])


def test_the_template_stands_in_where_a_processor_carries_none(policy: Policy) -> None:
    with_template = policy.chat("which ?")
    bare = models.Policy(policy.model, policy.family.load_processor(policy.model.name_or_path), policy.family)
    bare.processor.chat_template = None
    assert bare.chat("which ?") == with_template
    assert with_template.index(policy.processor.video_token) < with_template.index("which ?")


def test_projected_tower_states_are_the_models_own_features(policy: Policy, encoded: Encoded) -> None:
    ours = policy.family.project(policy.model, towers(policy, encoded))
    theirs = video_features(policy.model, batch_videos(encoded.videos))
    assert len(flat(ours)) == (3 if "Qwen3" in policy.family.ARCHITECTURE else 1)
    if not common.takes_features(policy.model) and "Onevision" in policy.family.ARCHITECTURE:
        pytest.skip("this transformers adds the newline after get_video_features; the test of the logits covers it")
    for level, expected in zip(flat(ours), flat(theirs), strict=True):
        assert level.std() > 0.1
        assert torch.allclose(level, expected, rtol=0, atol=1e-12)


def test_cached_features_and_positions_give_the_logits_that_pixels_give(policy: Policy, encoded: Encoded) -> None:
    for row, video in zip(encoded.ids, encoded.videos, strict=True):
        ids = torch.tensor([row])
        tower = policy.family.tower(policy.model, video)
        for source in (video, tower):
            positions = as_position_ids(policy.family.positions(policy.model, ids[0], source))
            logits = with_features(policy, ids, policy.family.project(policy.model, [tower]), positions)
            assert torch.allclose(logits, with_pixels(policy, ids, video), rtol=0, atol=1e-9)


def test_the_logits_depend_on_the_video(policy: Policy, encoded: Encoded) -> None:
    ids = torch.tensor([encoded.ids[0]])
    first, second = (with_pixels(policy, ids, video)[0, -1].softmax(-1) for video in encoded.videos)
    assert (first - second).abs().max() > 1e-4


def test_two_videos_share_a_packed_row(policy: Policy, encoded: Encoded) -> None:
    """Prompts one after the other in one row, each seeing itself alone, are the prompts apart."""
    rows = [torch.tensor(ids) for ids in encoded.ids]
    placed = [policy.family.positions(policy.model, ids, v) for ids, v in zip(rows, encoded.videos, strict=True)]
    owner = torch.cat([torch.full((len(ids),), number) for number, ids in enumerate(rows)])
    sees = (owner[:, None] == owner) & torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
    mask = torch.zeros(sees.shape, dtype=torch.float64).masked_fill(~sees, -torch.inf)[None, None]
    together = policy.model(
        **feed(policy.model, torch.cat(rows)[None], policy.family.project(policy.model, towers(policy, encoded))),
        position_ids=as_position_ids(torch.cat(placed, 1)),
        attention_mask=mask,
    ).logits[0]
    apart = [with_pixels(policy, ids[None], video)[0] for ids, video in zip(rows, encoded.videos, strict=True)]
    assert torch.allclose(together, torch.cat(apart), rtol=0, atol=1e-9)


def test_a_response_goes_on_one_position_after_the_prompts_highest(policy: Policy, encoded: Encoded) -> None:
    """As an ordinary forward pass over prompt and response places it, and as `generate` does."""
    prompt = torch.tensor(encoded.ids[0])
    response = torch.tensor([policy.tokenizer.convert_tokens_to_ids(word) for word in ("a", "red", "circle")])
    before = policy.family.positions(policy.model, prompt, encoded.videos[0])
    after = policy.family.positions(policy.model, torch.cat([prompt, response]), encoded.videos[0])
    assert torch.equal(after[:, : len(prompt)], before)
    expected = before.max() + 1 + torch.arange(len(response))
    assert torch.equal(after[:, len(prompt) :], expected.expand(len(before), -1))
    assert len(before) == (3 if "Qwen" in policy.family.ARCHITECTURE else 1)


def test_the_language_model_trains_and_the_projector_where_asked_for(policy: Policy) -> None:
    language, both = policy.trainable(), policy.trainable(projector=True)
    module = policy.model.model.language_model
    whole = {id(p) for p in [*module.parameters(), *policy.model.lm_head.parameters()]}
    assert {id(p) for p in language.values()} == whole
    extra = {name for name in both if name not in language}
    assert extra
    assert all("projector" in name or "merger" in name for name in extra)
    assert not any("tower" in name or "visual.blocks" in name or "patch_embed" in name for name in both)


def test_the_projector_gets_gradients_and_the_tower_none(policy: Policy, encoded: Encoded) -> None:
    projector = {n: p for n, p in policy.trainable(projector=True).items() if n not in policy.trainable()}
    ids = torch.tensor([encoded.ids[0]])
    features = policy.family.project(policy.model, [policy.family.tower(policy.model, encoded.videos[0])])
    positions = as_position_ids(policy.family.positions(policy.model, ids[0], encoded.videos[0]))
    loss = with_features(policy, ids, features, positions)[0, -1].log_softmax(-1)[7]
    frozen = [p for n, p in policy.model.named_parameters() if n not in policy.trainable(projector=True)]
    gradients = torch.autograd.grad(loss, [*projector.values(), *frozen], allow_unused=True)
    for name, gradient in zip(projector, gradients, strict=False):
        assert gradient is not None, name
        assert gradient.abs().max() > 1e-7, name
    newline = sum(gradient is not None for gradient in gradients[len(projector) :])
    assert newline == (1 if "Onevision" in policy.family.ARCHITECTURE else 0)  # its newline is a parameter of its own


def test_without_the_newer_hook_features_go_in_as_embeddings(
    policy: Policy, encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.tensor([encoded.ids[0]])
    features = policy.family.project(policy.model, [policy.family.tower(policy.model, encoded.videos[0])])
    positions = as_position_ids(policy.family.positions(policy.model, ids[0], encoded.videos[0]))

    monkeypatch.setattr(common, "takes_features", lambda model: False)
    inputs = feed(policy.model, ids, features)
    assert set(inputs) == {"inputs_embeds"}
    logits = policy.model(**inputs, position_ids=positions).logits
    assert not policy.model.get_decoder()._forward_pre_hooks
    assert torch.allclose(logits, with_pixels(policy, ids, encoded.videos[0]), rtol=0, atol=1e-9)


def test_stored_frames_keep_their_size_and_resizing_twice_changes_nothing(folder: Path, policy: Policy) -> None:
    resize = policy.family.resizer(folder)
    raw = np.random.default_rng(0).integers(0, 256, (TINY.frames, 90, 130, 3), dtype=np.uint8)
    stored = resize(raw)
    assert stored.dtype == np.uint8
    assert stored.shape[0] == TINY.frames
    assert stored.shape[3] == 3
    assert np.array_equal(resize(stored), stored)
    direct = policy.processor.video_processor(videos=[raw], do_sample_frames=False, return_tensors="pt")
    kept = policy.encode([policy.chat("which ?")], [stored]).videos[0]["pixel_values_videos"]
    assert torch.allclose(kept, direct["pixel_values_videos"], atol=1e-5)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_qwen_refuses_an_odd_number_of_frames(name: str, tmp_path: Path) -> None:
    policy = models.load(build(tmp_path, name))
    with pytest.raises(RecipeError, match=r"data\.frames: 3 frames a clip; this model takes them in multiples of 2"):
        policy.encode([policy.chat("which ?")], [clip(name, "v1")[:3]])
    with pytest.raises(RecipeError, match=r"data\.frames: 3 frames"):
        policy.family.resizer(tmp_path)(clip(name, "v1")[:3])


def test_qwen_places_frames_half_a_second_apart(tmp_path: Path) -> None:
    policy = models.load(build(tmp_path, "qwen3_vl"))
    row = policy.encode([policy.chat("which ?")], [clip("qwen3_vl", "v1")]).ids[0]
    text = policy.tokenizer.decode([i for i in row if i != policy.model.config.video_token_id])
    assert "user < 0 . 2 seconds > <|vision_start|> <|vision_end|> < 1 . 2 seconds > <|vision_start|>" in text
    assert text.count("<|vision_start|>") == text.count("<|vision_end|>") == TINY.frames // 2


def test_qwen2_5_places_steps_of_its_grid_one_second_apart(tmp_path: Path) -> None:
    policy = models.load(build(tmp_path, "qwen2_5_vl"))
    encoded = policy.encode([policy.chat("which ?")], [clip("qwen2_5_vl", "v1")])
    assert encoded.videos[0]["second_per_grid_ts"].tolist() == [1.0]
    ids = torch.tensor(encoded.ids[0])
    times = policy.family.positions(policy.model, ids, encoded.videos[0])[0]
    at_video = times[ids == policy.model.config.video_token_id]
    assert at_video.unique().diff().tolist() == [policy.model.config.vision_config.tokens_per_second]


def test_qwen2_5_places_text_after_a_long_clip_beyond_it(tmp_path: Path) -> None:
    """8 steps of 2 positions, so 0 to 14, in a frame of 3 x 4: what follows begins at 15, not at 4."""
    policy = models.load(build(tmp_path, "qwen2_5_vl"))
    encoded = policy.encode([policy.chat("which ?")], [np.tile(clip("qwen2_5_vl", "v1"), (4, 1, 1, 1))])
    ids = torch.tensor(encoded.ids[0])
    placed = policy.family.positions(policy.model, ids, encoded.videos[0])
    first, *_, last = (ids == policy.model.config.video_token_id).nonzero()[:, 0].tolist()
    assert placed[:, :first].tolist() == [list(range(first))] * 3
    assert (placed[:, first : last + 1].amax(1) - first).tolist() == [14, 2, 3]
    assert placed[:, last + 1 :].tolist() == [list(range(first + 15, first + 15 + len(ids) - last - 1))] * 3


def test_qwen2_5s_merger_gets_the_patches_in_the_grids_order(tmp_path: Path) -> None:
    """A tiny clip has 3 x 4 tokens in windows of 2 x 2: taken as they lie in the tower they would be out of place."""
    policy = models.load(build(tmp_path, "qwen2_5_vl"), dtype="float64")
    video = policy.encode([policy.chat("which ?")], [clip("qwen2_5_vl", "v1")]).videos[0]
    visual = policy.model.model.visual
    in_windows = common.entering([visual.merger], policy.model, video).states[0]
    in_grid = policy.family.tower(policy.model, video)["features"]
    assert not torch.equal(in_windows, in_grid)
    assert torch.equal(in_windows.sort(0).values, in_grid.sort(0).values)


@pytest.mark.parametrize("form", ["video_llava", "video_llava_patches"])
@pytest.mark.parametrize("shape", [BENCH, VIDEO_LLAVA_7B])
def test_the_benchmarks_clip_is_2056_video_tokens_and_2048_without_class_tokens(shape: Shape, form: str) -> None:
    config, model_class, processor = parts(form, shape)
    with torch.device("meta"):
        model = model_class(config)
    encoded = video_llava.encode(processor, ["<video>\nwhat ?"], [clip("video_llava", "v1", shape=shape)])
    assert encoded.ids[0].count(config.video_token_id) == (2056 if form == "video_llava" else 2048)
    if shape is VIDEO_LLAVA_7B:
        assert sum(p.numel() for p in model.model.language_model.parameters()) + model.lm_head.weight.numel() > 6.7e9


def test_an_unknown_architecture_is_refused_naming_the_supported_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(ModelError, match="GPT2LMHeadModel is not supported") as refused:
        models.load(tmp_path)
    for architecture in models.FAMILIES:
        assert architecture in str(refused.value)
    assert len(models.FAMILIES) == len(FAMILIES) == 5
