"""Video-LLaVA in its other forms, and converted: vLLM gives what the embedded engine gives."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm.sampling_params", reason="`make test-vllm` makes the environment for this")

from isr_dpo.engines import Choose, Sample
from isr_dpo.engines.hf import HFEngine
from isr_dpo.engines.vllm import VLLMEngine, _drawing
from isr_dpo.errors import RecipeError
from isr_dpo.models import convert
from isr_dpo.models.common import video_features
from tests import families
from tests.engines.contract import TOLERANCE, Frames, asked
from tests.models.convert.original_layout import Original, save, train_tokenizer
from tests.vllm.published import SHAPE

PATCHES = (SHAPE.pixels // SHAPE.patch) ** 2


@pytest.fixture(scope="module", params=[*families.FORMS, "converted_over_time"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param != "converted_over_time":
        return families.build(folder, request.param, shape=SHAPE, seed=3)
    original = Original(
        400, hidden=SHAPE.hidden, frames=SHAPE.frames, pixels=SHAPE.pixels, patch=SHAPE.patch, time=True
    )
    weights = {name: tensor.float() for name, tensor in original.weights().items()}
    source = save(folder / "source", original, weights, train_tokenizer(folder), kind="bin")
    convert.convert(convert.plan(source), str(folder / "policy-over_time"))
    return folder / "policy-over_time"


@pytest.fixture(scope="module")
def frames() -> Frames:
    return functools.partial(families.clip, "video_llava", shape=SHAPE)


def test_greedy_texts_and_label_probabilities_are_the_embedded_engines(engine: VLLMEngine, embedded: HFEngine) -> None:
    samples = [replace(asked(number), max_new_tokens=12) for number in range(8)]
    found = engine.sample(samples)
    assert found == embedded.sample(samples)
    assert len({text.text for (text, *_) in found}) > 4, "what is written depends on the video"
    choices = [Choose(f"v{number}", "which is better ?", ("1", "2"), 0, "choice") for number in range(4)]
    for ours, theirs in zip(engine.choose(choices), embedded.choose(choices), strict=True):
        assert ours.probabilities == pytest.approx(theirs.probabilities, abs=TOLERANCE)


def test_features_are_those_of_the_embedded_model(engine: VLLMEngine, embedded: HFEngine) -> None:
    policy = embedded._policy
    videos = policy.encode([policy.chat("what ?")] * 2, [embedded._frames(key) for key in ("v1", "v2")]).videos
    pixels = [video["pixel_values_videos"][0] for video in videos]  # [F, 3, H, W] each

    def embed(model: Any) -> list[torch.Tensor]:
        with torch.no_grad():
            return list(model.embed_multimodal(pixel_values_videos=pixels))

    (found,) = engine._llm.apply_model(embed)
    for ours, video in zip(found, videos, strict=True):
        with torch.no_grad():
            expected = video_features(policy.model, video).pooler_output.flatten(0, 1)
        assert ours.shape == (SHAPE.frames * PATCHES, SHAPE.hidden)
        assert expected.std() > 0.1
        assert torch.allclose(ours, expected, rtol=0, atol=1e-4)


def test_vllm_runs_the_very_ids_that_the_processor_makes(engine: VLLMEngine, embedded: HFEngine) -> None:
    policy = embedded._policy
    request = Sample("v2", "what colour is it ?", (0,), 0.0, 1.0, 1)
    (expected,) = policy.encode([policy.chat(request.prompt)], [embedded._frames("v2")]).ids
    (run,) = engine._llm.generate(
        [engine._prompt(engine._ids(request.prompt), "v2")], _drawing(request, 0), use_tqdm=False
    )
    assert run.prompt_token_ids == expected
    assert expected.count(policy.model.config.video_token_id) == SHAPE.frames * PATCHES


def test_another_number_of_frames_is_refused_where_attention_goes_over_time(
    folder: Path, engine: VLLMEngine, frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_frames", lambda key: frames(key)[: SHAPE.frames // 2])
    request = Sample("short", "what ?", (0,), 0.0, 1.0, 4)
    if "over_time" in folder.name:
        with pytest.raises(RecipeError, match=rf"data\.frames: 12 frames a clip; .* takes {SHAPE.frames}"):
            engine.sample([request])
        with pytest.raises(ValueError, match=rf"12 frames; .* takes {SHAPE.frames}"):  # as a server of vLLM's own asks
            engine._llm.generate([engine._prompt(engine._ids("what ?"), "short")], use_tqdm=False)
    else:
        assert engine.sample([request])
