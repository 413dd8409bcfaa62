"""A served model as an engine: what it is sent, and what becomes of its answers."""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from isr_dpo import config
from isr_dpo.engines import Choice, Choose, Sample, Text, open_engine
from isr_dpo.engines.openai import OpenAIEngine
from isr_dpo.errors import KeyRefused, OutsideError, RecipeError
from tests.servers.model_server import KEY, Answer, Asked, model_server
from tests.tiny import clip

LONG = Answer(status=400, error={"message": "This model's maximum context length is 4096 tokens."})
FILTERED = Answer(status=400, error={"message": "no", "code": "content_filter"})


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def engine(
    url: str, *, video_as: str = "images", retries: int = 2, frames: Any = clip, **settings: Any
) -> OpenAIEngine:
    everything = {"concurrency": 4, "timeout_seconds": 60.0, **settings}
    return OpenAIEngine(frames, model="m", base_url=url, video_as=video_as, max_retries=retries, **everything)


def always(*answers: Answer) -> Callable[[Asked, int], Answer]:
    """Each request gets these answers in turn, the last one for ever."""
    return lambda asked, n: answers[min(n, len(answers) - 1)]


def samples(count: int, **changes: Any) -> list[Sample]:
    return [Sample(f"v{i}", f"what {i} ?", (i, 2**62 + i), 0.7, 0.9, 6) for i in range(count)]


def choose(prompt: str = "which ?", rationale_tokens: int = 0) -> Choose:
    return Choose("v1", prompt, ("1", "2"), rationale_tokens, "Preferred answer:")


def test_a_draw_is_a_request_with_its_seed_and_results_keep_their_order() -> None:
    meeting, asked_so_far = threading.Barrier(3), itertools.count()

    def answer(asked: Asked, n: int) -> Answer:
        if next(asked_so_far) < 3:
            meeting.wait(timeout=60)
        return Answer(text=f" {asked.prompt} {asked.settings['seed']} ", hang=0.05 if asked.settings["seed"] % 3 else 0)

    done: list[int] = []
    with model_server(answer) as server:
        texts = engine(server.url, concurrency=3).sample(samples(5), done.append)
    assert [[t.text for t in row] for row in texts] == [[f"what {i} ? {s}" for s in (i, 2**62 + i)] for i in range(5)]
    assert {(t.finish, t.tokens) for row in texts for t in row} == {("stop", 3)}
    assert server.most_at_once == 3
    assert done == [1] * 5
    assert server.asked[0].settings.keys() == {"seed", "temperature", "top_p", "max_tokens"}
    assert {(a.settings["temperature"], a.settings["top_p"], a.settings["max_tokens"]) for a in server.asked} == {
        (0.7, 0.9, 6)
    }


def test_frames_arrive_as_images_without_loss() -> None:
    with model_server(always(Answer())) as server:
        engine(server.url).sample([Sample("v7", "what ?", (1,), 0.0, 1.0, 4)])
    (asked,) = server.asked
    assert asked.kind == "image_url"
    assert np.array_equal(asked.frames, clip("v7"))


@pytest.mark.parametrize("shape", [(32, 48), (31, 45)], ids=["even", "odd"])
def test_frames_arrive_as_one_video(shape: tuple[int, int]) -> None:
    height, width = shape
    ramp = np.linspace(0, 255, width).astype(np.uint8)
    frames = np.stack([np.full((height, width, 3), 30 * i, np.uint8) // 2 + ramp[:, None] // 2 for i in range(8)])
    with model_server(always(Answer())) as server:
        engine(server.url, video_as="video", frames=lambda _: frames).sample(samples(1))
    asked = server.asked[0]
    assert asked.kind == "video_url"
    assert asked.frames.shape == (8, height + height % 2, width + width % 2, 3)
    assert np.abs(asked.frames[:, :height, :width].astype(int) - frames).mean() < 4


def test_a_text_that_was_cut_or_is_empty_says_so() -> None:
    with model_server(lambda asked, n: Answer(finish="length") if "0" in asked.prompt else Answer(text=None)) as server:
        cut, empty = engine(server.url).sample(samples(2))
    assert {text.finish for text in cut} == {"length"}
    assert empty == [Text("", 3, "stop")] * 2


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (LONG, "too_long"),
        (FILTERED, "refused"),
        (Answer(text=None, refusal="I will not"), "refused"),
        (Answer(text=None, finish="content_filter"), "refused"),
    ],
)
def test_a_request_whose_content_is_refused_stops_no_other(bad: Answer, reason: str) -> None:
    good = Answer(tops=[{"1": 0.5}])
    with model_server(lambda asked, n: bad if "1" in asked.prompt else good) as server:
        texts = engine(server.url).sample(samples(3))
        choices = engine(server.url).choose([choose(prompt) for prompt in ("which 0 ?", "which 1 ?")])
    assert [row[0].finish for row in texts] == ["stop", reason, "stop"]
    assert texts[1][0].text == ""
    assert choices == [Choice((0.5, 0.0), ""), Choice((0.0, 0.0), "", reason)]


def test_choose_reads_the_labels_among_the_first_tokens_alternatives() -> None:
    top = {"1": 0.4, " 1": 0.1, "The": 0.2, "2": 0.15, "12": 0.05}
    with model_server(always(Answer(text="1", tops=[top]))) as server:
        (choice,) = engine(server.url).choose([choose()])
    assert choice == Choice((0.5, 0.15), "")
    (asked,) = server.asked
    assert asked.settings == {"temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": 20}
    assert asked.prompt == "which ?"


def test_choose_reads_the_labels_after_the_cue_that_the_model_writes() -> None:
    written = [" It", " is", " red", ".", " Preferred", " answer", ":", " 2", "."]
    tops = [{token: 0.9} if token != " 2" else {" 2": 0.7, " 1": 0.2} for token in written]
    with model_server(lambda asked, n: Answer(tops=tops if "cue" in asked.prompt else tops[:4])) as server:
        with_cue, without = engine(server.url).choose([choose("cue ?", 12), choose("which ?", 12)])
    assert with_cue == Choice((0.2, 0.7), "It is red.")
    assert without == Choice((0.0, 0.0), "It is red.")


@pytest.mark.parametrize(
    "answer",
    [Answer(tops=None), Answer(status=400, error={"message": "logprobs is not supported by this model"})],
    ids=["none given", "refused"],
)
def test_an_endpoint_without_probabilities_says_what_to_do(answer: Answer) -> None:
    with model_server(always(answer)) as server, pytest.raises(RecipeError, match=r"judge\.verdict: text") as caught:
        engine(server.url).choose([choose()])
    assert server.url in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    [Answer(status=500), Answer(status=429), Answer(cut=True), Answer(hang=9)],
    ids=["500", "429", "cut", "hang"],
)
def test_a_passing_fault_is_retried(bad: Answer) -> None:
    with model_server(always(bad, Answer())) as server:
        waits = 2.0 if bad.hang else 60.0
        ((text,),) = engine(server.url, timeout_seconds=waits).sample([Sample("v1", "what ?", (5,), 0.7, 1.0, 4)])
    assert text.text == "a red ball"
    assert [asked.settings["seed"] for asked in server.asked] == [5, 5]


def test_the_servers_own_wait_is_honoured() -> None:
    with model_server(always(Answer(status=429, headers={"Retry-After": "2"}), Answer())) as server:
        assert engine(server.url).choose([]) == []
        engine(server.url).sample([Sample("v1", "what ?", (5,), 0.7, 1.0, 4)])
    first, second = server.times
    assert second - first >= 2.0


def test_a_server_that_stays_away_or_refuses_all_ends_the_step_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with model_server(always(Answer(status=503))) as server, pytest.raises(OutsideError, match="503 misbehaving"):
        engine(server.url, retries=0).sample(samples(2))
    unknown = Answer(status=404, error={"message": "no model m"})
    with model_server(always(unknown)) as server, pytest.raises(RecipeError, match="model 'm': 404 no model m"):
        engine(server.url).sample(samples(2))
    wrong = secrets.token_hex(16)
    monkeypatch.setenv("OPENAI_API_KEY", wrong)
    with model_server(always(Answer())) as server, pytest.raises(KeyRefused, match="refuses the key") as caught:
        engine(server.url).sample(samples(2))
    assert wrong not in str(caught.value)


def test_the_recipe_opens_it_and_needs_a_model_and_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    model = config.Model(start="x", registered_name="x")
    with model_server(always(Answer())) as server:
        settings = config.Engine(kind="openai", model="m", base_url=server.url, video_as="video")
        opened = open_engine(settings, model, tmp_path, clip)
        assert opened.sample(samples(1))[0][0].text == "a red ball"
    assert not opened.deterministic
    with pytest.raises(ValueError, match=r"needs engine\.model"):
        config.Engine(kind="openai")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(RecipeError, match=r"engine\.kind is 'openai' and the environment has no OPENAI_API_KEY"):
        open_engine(settings, model, tmp_path, clip)
