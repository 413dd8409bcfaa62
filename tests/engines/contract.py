"""What every engine that runs a policy itself keeps to. A test module gives the fixtures `folder` (a policy), `frames`
(clips by key) and `engine` (on both), and imports these tests: the embedded engine's under `make test`, vLLM's under
`make test-vllm`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from isr_dpo import models
from isr_dpo.engines import Choose, Engine, Sample, Text
from isr_dpo.errors import ModelError
from isr_dpo.models import Policy

TOLERANCE = 1e-3
"""Of a label's probability and log-probability, in fp32."""
__all__ = [
    "Frames",
    "policy",
    "test_a_greedy_text_is_the_models_own",
    "test_a_rationale_is_what_the_model_writes_before_the_cue",
    "test_choose_reads_the_labels_where_the_cue_ends",
    "test_draws_are_the_seeds_and_come_again",
    "test_each_request_has_its_result_and_its_progress",
    "test_labels_that_are_not_one_token_are_refused",
    "test_what_does_not_fit_the_context_says_so_and_stops_nothing",
]

Frames = Callable[[str], np.ndarray]


def asked(number: int, *, temperature: float = 0.0, seeds: tuple[int, ...] = (1, 2)) -> Sample:
    """Requests of several lengths about four videos."""
    return Sample(f"v{number % 4}", "what colour is the object ? " * (1 + number % 3), seeds, temperature, 1.0, 6)


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    """The policy in transformers' own hands."""
    return models.load(folder)


def logits_after(policy: Policy, text: str, frames: np.ndarray) -> torch.Tensor:
    """[vocabulary], by a forward pass of the model over one row."""
    encoded = policy.encode([text], [frames])
    return forward(policy, encoded.ids[0], encoded.videos[0])


def forward(policy: Policy, ids: list[int], video: dict[str, torch.Tensor]) -> torch.Tensor:
    """The last position's logits [vocabulary]."""
    row = torch.tensor([ids])
    positions = policy.family.positions(policy.model, row[0], video)  # [1, T], or [3, T] with M-RoPE
    inputs = {**policy.family.inputs(policy.model, row), **video}
    with torch.no_grad():
        logits: torch.Tensor = policy.model(
            input_ids=row, **inputs, position_ids=positions if len(positions) == 1 else positions[:, None]
        ).logits[0, -1]
    return logits.double()


def greedy(policy: Policy, request: Sample, frames: np.ndarray) -> str:
    """What the model writes, each token by a forward pass over all before it."""
    text, new = policy.chat(request.prompt), list[int]()
    end = policy.tokenizer.eos_token_id
    encoded = policy.encode([text], [frames])
    while len(new) < request.max_new_tokens and (not new or new[-1] != end):
        new.append(int(forward(policy, encoded.ids[0] + new, encoded.videos[0]).argmax()))
    return str(policy.tokenizer.decode(new, skip_special_tokens=True)).strip()


def test_a_greedy_text_is_the_models_own(engine: Engine, policy: Policy, frames: Frames) -> None:
    requests = [asked(number) for number in range(6)]
    written = engine.sample(requests)
    expected = [greedy(policy, request, frames(request.video)) for request in requests]
    assert [[text.text for text in row] for row in written] == [[text, text] for text in expected]


def test_choose_reads_the_labels_where_the_cue_ends(engine: Engine, policy: Policy, frames: Frames) -> None:
    requests = [Choose(f"v{n % 2}", "which is better ? " * (1 + n // 2), ("1", "2"), 0, "choice") for n in range(4)]
    labels = policy.tokenizer.convert_tokens_to_ids(["1", "2"])
    choices = engine.choose(requests)
    assert len({choice.probabilities for choice in choices}) == 4  # videos and prompts are told apart
    for request, choice in zip(requests, choices, strict=True):
        logits = logits_after(policy, policy.chat(request.prompt) + " choice", frames(request.video))
        expected = logits.log_softmax(-1)[labels]
        assert choice.probabilities == pytest.approx(expected.exp().tolist(), abs=TOLERANCE)
        for found, logp in zip(choice.probabilities, expected.tolist(), strict=True):
            rounding = 5e-7 / found  # probabilities are given to six decimals
            assert np.log(found) == pytest.approx(logp, abs=TOLERANCE + rounding)
        assert choice.rationale == ""


def test_a_rationale_is_what_the_model_writes_before_the_cue(engine: Engine) -> None:
    asking = Sample("v3", "which is better ?", (0,), 0.0, 1.0, 4)
    ((written,),) = engine.sample([asking])
    word = written.text.split()[-1]
    for cue in ("choice", word):
        (choice,) = engine.choose([Choose("v3", "which is better ?", ("1", "2"), 4, cue)])
        assert choice.rationale == written.text.partition(cue)[0].strip()


def test_draws_are_the_seeds_and_come_again(engine: Engine) -> None:
    request = asked(1, temperature=2.0, seeds=(11, 12, 13))
    (first,), (again,) = engine.sample([request]), engine.sample([request])
    assert first == again
    assert len({text.text for text in first}) == 3
    (turned,) = engine.sample([replace(request, seeds=(13, 11, 12))])
    assert turned == [first[2], first[0], first[1]]


def test_each_request_has_its_result_and_its_progress(engine: Engine) -> None:
    counts: list[int] = []
    requests = [asked(number, temperature=0.7 * (number % 2)) for number in range(5)]
    rows = engine.sample(requests, counts.append)
    assert sum(counts) == 5
    assert [len(row) for row in rows] == [2] * 5
    assert all(text.tokens <= 6 and text.finish in ("stop", "length") for row in rows for text in row)
    assert all(text.tokens == 6 for row in rows for text in row if text.finish == "length")
    assert engine.sample(requests[::-2])[-1] == rows[0]
    counts.clear()
    engine.choose([Choose(f"v{n}", "which ?", ("1", "2"), 2 * (n % 2), "choice") for n in range(3)], counts.append)
    assert sum(counts) == 3


def test_what_does_not_fit_the_context_says_so_and_stops_nothing(engine: Engine) -> None:
    long = replace(asked(1), prompt="what " * 2000)
    counts: list[int] = []
    first, refused, last = engine.sample([asked(1), long, asked(2)], counts.append)
    assert refused == [Text("", 0, "too_long")] * 2
    assert [first, last] == engine.sample([asked(1), asked(2)])
    assert sum(counts) == 3
    choices = engine.choose([Choose("v1", prompt, ("1", "2"), 2, "choice") for prompt in (long.prompt, "which ?")])
    assert [choice.finish for choice in choices] == ["too_long", "stop"]
    assert choices[0].probabilities == (0.0, 0.0)


def test_labels_that_are_not_one_token_are_refused(engine: Engine) -> None:
    with pytest.raises(ModelError, match=r"labels .* are not single tokens"):
        engine.choose([Choose("v3", "which ?", ("1", "1 2"), 0, "choice")])
