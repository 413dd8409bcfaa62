"""vLLM keeps the engines' contract, and gives what the embedded engine gives, on a tiny policy of each family."""

from __future__ import annotations

import functools
import logging
import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("vllm.sampling_params", reason="`make test-vllm` makes the environment for this")

from isr_dpo import config, prompts
from isr_dpo.engines import Choose, Sample, open_engine
from isr_dpo.engines.hf import HFEngine
from isr_dpo.engines.vllm import VLLMEngine, _drawing
from isr_dpo.errors import ModelError
from isr_dpo.judge import judge
from isr_dpo.records import Responses
from tests.engines.contract import *  # noqa: F403 - its tests, and a fixture
from tests.engines.contract import TOLERANCE, Frames, asked
from tests.vllm import published
from tests.vllm.published import MODEL


@pytest.fixture(scope="module", params=published.SHAPES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published.build(tmp_path_factory.mktemp(family), family)


@pytest.fixture(scope="module")
def frames(family: str) -> Frames:
    return functools.partial(published.clip, family)


def test_greedy_texts_and_label_probabilities_are_the_embedded_engines(engine: VLLMEngine, embedded: HFEngine) -> None:
    samples = [replace(asked(number), max_new_tokens=12) for number in range(16)]
    assert engine.sample(samples) == embedded.sample(samples)
    words = "which is better ? "
    choices = [Choose(f"v{n % 4}", words * (1 + n % 5), ("1", "2"), 5 * (n % 2), "choice") for n in range(16)]
    for ours, theirs in zip(engine.choose(choices), embedded.choose(choices), strict=True):
        assert ours.probabilities == pytest.approx(theirs.probabilities, abs=TOLERANCE)
        assert ours.rationale == theirs.rationale


def test_vllm_runs_the_very_ids_that_the_processor_makes(engine: VLLMEngine, embedded: HFEngine) -> None:
    policy = embedded._policy
    request = Sample("v2", "what colour is it ?", (0,), 0.0, 1.0, 1)
    (expected,) = policy.encode([policy.chat(request.prompt)], [embedded._frames("v2")]).ids
    prompt = engine._prompt(engine._ids(request.prompt), "v2")
    (run,) = engine._llm.generate([prompt], _drawing(request, 0), use_tqdm=False)
    assert run.prompt_token_ids == expected
    assert engine._room(engine._ids(request.prompt), "v2") == published.SHAPE.context - len(expected)


def test_what_is_asked_about_a_video_shares_its_prompt(
    engine: VLLMEngine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two draws, a description and both orders of a judgement: blocks of the prompt's beginning are computed once, and
    the clip is processed once; the log says so."""
    before = engine.counters()
    monkeypatch.setattr(engine, "_told", -math.inf)
    caplog.set_level(logging.INFO, logger="isr_dpo")
    engine.sample([asked(3), Sample("v3", "describe the video in detail", (5,), 0.7, 1.0, 4)])
    engine.choose([Choose("v3", f"which is better ? {order}", ("1", "2"), 0, "choice") for order in ("1 2", "2 1")])
    spent = {name: value - before[name] for name, value in engine.counters().items()}
    prompts = spent["videos"]
    assert prompts >= 4
    assert spent["prompt_tokens_kept"] >= (prompts - 1) * 128
    assert spent["videos_kept"] >= prompts - 1
    assert re.search(r"vLLM: \d+ of \d+ prompt tokens and \d+ of \d+ videos were in its caches", caplog.text)


def test_calls_from_several_threads_run_together_and_give_what_they_give_alone(engine: VLLMEngine) -> None:
    samples = [replace(asked(number), max_new_tokens=12) for number in range(8)]
    choices = [
        Choose(f"v{n % 4}", "which is better ?" * (1 + n % 3), ("1", "2"), 3 * (n % 2), "choice") for n in range(8)
    ]
    alone = [engine.sample([sample]) for sample in samples], [engine.choose([choice]) for choice in choices]
    with ThreadPoolExecutor(6) as threads:
        sampled = threads.map(lambda sample: engine.sample([sample]), samples)
        chosen = threads.map(lambda choice: engine.choose([choice]), choices)
    assert list(sampled) == alone[0]
    for (ours,), (expected,) in zip(chosen, alone[1], strict=True):
        assert ours.probabilities == pytest.approx(expected.probabilities, abs=TOLERANCE)
        assert ours.rationale == expected.rationale


def test_a_written_verdict_is_read_strictly(engine: VLLMEngine) -> None:
    """What a random policy writes is no verdict; it is kept, and the row yields no preference."""
    row = Responses(
        id="a", video="v1", prompt="what ?", responses=("red", "blue"), finish=("stop", "stop"), seeds=(1, 2)
    )
    settings = config.Judge(verdict="text")
    (judged,) = judge(
        [row], engine, contexts=None, prompts=prompts.load("lmm"), settings=settings, seed=0, round_index=1
    )
    assert judged.outcome == "unparsed"
    assert len(judged.rationales) == 2
    assert all(judged.rationales)


def test_a_clip_is_known_by_its_content(engine: VLLMEngine) -> None:
    engine.sample([Sample("v1", "what ?", (0,), 0.0, 1.0, 1)])
    frames, engine._frames = engine._frames, lambda _: frames("v1")  # another key, the same frames
    before = engine.counters()
    try:
        engine.sample([Sample("copied", "what ?", (0,), 0.0, 1.0, 1)])
    finally:
        engine._frames = frames
    assert engine.counters()["videos_kept"] - before["videos_kept"] == engine.counters()["videos"] - before["videos"]


def test_a_cache_too_small_says_what_to_lower(folder: Path, frames: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "100000")
    with pytest.raises(ModelError, match=r"lower engine\.vllm\.context_tokens"):
        open_engine(config.Engine(kind="vllm"), MODEL, folder, frames)


def test_what_this_vllm_is_not_built_for_is_refused(
    folder: Path, frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "0")  # given back afterwards
    invariant = config.VLLM(batch_invariant=True)
    with pytest.raises(ModelError, match=r"engine\.vllm\.batch_invariant: a GPU's"):
        open_engine(config.Engine(kind="vllm", vllm=invariant), MODEL, folder, frames)
    with pytest.raises(ModelError, match=r"model\.device cuda"):
        open_engine(config.Engine(kind="vllm"), MODEL.model_copy(update={"device": "cuda"}), folder, frames)
