"""A converted checkpoint is the original model: same ids, same logits, same texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from isr_dpo import models
from isr_dpo.engines import Sample
from isr_dpo.engines.hf import HFEngine
from isr_dpo.models import convert
from tests.models.convert.original_layout import Original, save
from tests.models.convert.original_llava import Statement

PROMPT = "What is the colour of the ball?\nAnswer briefly: 12 < 34, naïve 日本😀  "
VARIANTS = {
    "plain-dropped-bin": (Original(400), "bin"),
    "plain-kept-safetensors": (Original(400, class_token=True, image_tower=False), "safetensors"),
    "time-dropped-safetensors": (Original(400, time=True), "safetensors"),
    "time-kept-bin": (Original(400, time=True, class_token=True, frames=4), "bin"),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _frames(original: Original) -> np.ndarray:
    size = (original.frames, original.pixels, original.pixels, 3)
    return np.random.default_rng(3).integers(0, 256, size, dtype=np.uint8)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_converted_model_gives_the_original_logits_and_text(variant: str, tmp_path: Path, pieces: Path) -> None:
    original, kind = VARIANTS[variant]
    weights = original.weights(seed=5)
    source = save(tmp_path / "source", original, weights, pieces, kind=kind)
    statement = Statement(original, weights, pieces)
    convert.convert(convert.plan(source), str(tmp_path / "policy"))

    frames = _frames(original)
    policy = models.load(tmp_path / "policy", dtype="float64")
    encoded = policy.encode([policy.chat(PROMPT)], [frames])
    ids, video = encoded.ids[0], encoded.videos[0]
    before, after = statement.chunks(PROMPT)
    token = policy.model.config.video_token_id
    places = (original.pixels // original.patch) ** 2 + original.class_token
    assert ids == [*before, *[token] * (original.frames * places), *after]
    assert policy.model.config.video_seq_length == original.frames * places

    pixels = video["pixel_values_videos"].double()
    assert (pixels[0] - statement.pixels(frames)).abs().max() < 1e-5  # the processor's own float32
    with torch.no_grad():
        found = policy.model(input_ids=torch.tensor([ids]), pixel_values_videos=pixels).logits[0]
    expected = statement.logits([before, after], pixels[0])
    assert (found[:, : original.vocabulary] - expected).abs().max() <= 1e-9
    assert found[:, original.vocabulary :].abs().max() == 0  # the two tokens that are added
    assert expected.std() > 0.5  # not a model that says nothing

    text = statement.answer(PROMPT, pixels[0], limit=12)
    engine = HFEngine(tmp_path / "policy", lambda _: frames, dtype="float64", device="cpu", batch_rows=1)
    request = Sample(video="v", prompt=PROMPT, seeds=(0,), temperature=0.0, top_p=1.0, max_new_tokens=12)
    assert engine.sample([request])[0][0].text == text
    assert len(text) > 4


def test_a_class_token_and_time_change_the_logits(pieces: Path) -> None:
    """So that the test above would notice a conversion without them."""
    original = Original(400, time=True)
    weights = original.weights(seed=5)
    pixels = Statement(original, weights, pieces).pixels(_frames(original))
    with_time = Statement(original, weights, pieces).video(pixels)
    assert (with_time - Statement(replace(original, time=False), weights, pieces).video(pixels)).abs().max() > 0.1
    assert len(Statement(replace(original, class_token=True), weights, pieces).video(pixels)) == len(with_time) + 8
