"""The plain trainer: agrees with twenty lines of PyTorch, and repeats itself bit for bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from isr_dpo import models, prompts
from isr_dpo.config import Train
from isr_dpo.dpo.trainer import Pairs, linear_schedule, reference_logps, train
from isr_dpo.errors import DataError, ModelError
from isr_dpo.models import Policy
from isr_dpo.records import Preference
from tests.tiny import clip, make_policy

SETTINGS = Train(learning_rate=1e-3, beta=0.2, batch_pairs=4, micro_batch_pairs=2, warmup_fraction=0.25)
ROWS = [
    Preference(id=f"q{i}", video=f"v{i % 3}", prompt="what colour is the object ?", chosen=chosen, rejected=rejected)
    for i, (chosen, rejected) in enumerate(
        [("red", "the object is blue ."), ("the object is red .", "blue"), ("blue", "red red"), ("1", "2")] * 2
        + [("2 2", "1")]
    )
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("tiny"))


def pairs_of(rows: Sequence[Preference]) -> Pairs:
    return Pairs(rows, template=prompts.load("world").answer, frames=clip)


def run(
    folder: Path, settings: Train = SETTINGS, rows: Sequence[Preference] = ROWS, *, dtype: str = "float32"
) -> tuple[Policy, list[dict[str, float]]]:
    policy = models.load(folder, dtype=dtype)
    reference = reference_logps(policy, pairs_of(rows), micro_batch_pairs=settings.micro_batch_pairs)
    trained = train(policy, pairs_of(rows), reference, settings=settings, epochs=2, seed=3, round_index=1)
    return policy, trained.log


def test_a_pairs_log_probs_are_those_of_each_sequence_alone(folder: Path) -> None:
    policy = models.load(folder)
    policy.model.double()
    chosen, rejected = pairs_of(ROWS).logps(policy, [1, 4])
    for number, row in enumerate((ROWS[1], ROWS[4])):
        for text, value in ((row.chosen, chosen), (row.rejected, rejected)):
            encoded = policy.encode([policy.chat(row.prompt)], [clip(row.video)])
            response = [*policy.tokenizer.encode(text, add_special_tokens=False), policy.tokenizer.eos_token_id]
            ids = torch.tensor([encoded.ids[0] + response])
            logits = policy.model(
                input_ids=ids, pixel_values_videos=encoded.pixels["pixel_values_videos"].double()
            ).logits
            logps = logits[0, -len(response) - 1 : -1].log_softmax(-1)
            expected = sum(float(logps[i, token].detach()) for i, token in enumerate(response))
            assert float(value[number].detach()) == pytest.approx(expected, abs=1e-9)


def test_training_equals_a_plain_loop(folder: Path) -> None:
    policy, log = run(folder, SETTINGS, ROWS[:8], dtype="float64")
    plain = models.load(folder, dtype="float64")
    trainable = [p for n, p in plain.model.named_parameters() if "language_model" in n or n.startswith("lm_head")]
    pairs = pairs_of(ROWS[:8])
    with torch.no_grad():
        reference = pairs.logps(plain, range(8))
    optimizer = torch.optim.AdamW(trainable, lr=1e-3, weight_decay=0.0)
    from isr_dpo.dpo.trainer import _batches

    for step, batch in enumerate(_batches(8, 4, 2, 3, 1)):
        factor = (step + 1) / 2 if step < 1 else (4 - step) / 3
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * factor
        chosen, rejected = pairs.logps(plain, batch)
        margin = 0.2 * ((chosen - reference[0][batch]) - (rejected - reference[1][batch]))
        loss = torch.log(1 + torch.exp(-margin)).mean()
        assert log[step]["loss"] == pytest.approx(float(loss.detach()), abs=1e-12)
        assert log[step]["learning_rate"] == pytest.approx(1e-3 * factor)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for (name, ours), theirs in zip(policy.model.state_dict().items(), plain.model.state_dict().values(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-9), name


def test_training_lowers_the_loss_and_touches_the_language_model_alone(folder: Path) -> None:
    before = models.load(folder).model.state_dict()
    policy, log = run(folder)
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert log[-1]["loss"] < log[0]["loss"]
    changed = {name for name, value in policy.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(("model.language_model.", "lm_head.")) for name in changed)


def test_the_same_pairs_give_the_same_weights_bit_for_bit(folder: Path) -> None:
    first, second = run(folder)[0].model.state_dict(), run(folder)[0].model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_pair_is_seen_once_an_epoch_and_the_last_batch_may_be_smaller() -> None:
    from isr_dpo.dpo.trainer import _batches

    batches = list(_batches(9, 4, 2, seed=0, round_index=1))
    assert [len(b) for b in batches] == [4, 4, 1, 4, 4, 1]
    first, second = (sorted(i for batch in epoch for i in batch) for epoch in (batches[:3], batches[3:]))
    assert first == second == list(range(9))
    assert batches[:3] != batches[3:]


def test_schedule_warms_up_and_ends_at_zero() -> None:
    factor = linear_schedule(10, 0.2)
    assert [factor(s) for s in range(11)] == pytest.approx(
        [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0]
    )


def test_a_loss_that_is_not_finite_stops_the_round_by_name(folder: Path) -> None:
    policy = models.load(folder)
    reference = reference_logps(policy, pairs_of(ROWS), micro_batch_pairs=2)
    broken = reference._replace(chosen=reference.chosen * math.nan)
    with pytest.raises(ModelError, match=r"round 1, step 1: loss nan.*lower train.learning_rate"):
        train(policy, pairs_of(ROWS), broken, settings=SETTINGS, epochs=1, seed=0, round_index=1)


def test_no_pairs_or_one_sided_pairs_are_refused() -> None:
    with pytest.raises(DataError, match="no preference pairs"):
        pairs_of([])
    with pytest.raises(DataError, match=r"pair q0 has an empty side: chosen 'red', rejected '  '"):
        pairs_of([ROWS[0].model_copy(update={"rejected": "  "})])
