"""Pairs as packed rows, and pairs that cannot be trained on."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from isr_dpo import models
from isr_dpo.dpo import plain, reference
from isr_dpo.dpo.backend import BackendSettings
from isr_dpo.dpo.batch import BadPair, Pairs
from isr_dpo.dpo.features import Features, tower_digest
from isr_dpo.dpo.forward import SharedPrefix
from isr_dpo.dpo.reference import Reference
from isr_dpo.errors import CorruptOutput, DataError, StaleOutput
from isr_dpo.models import Policy
from isr_dpo.records import Preference
from isr_dpo.scratch import YOUNG_SECONDS
from tests.dpo.ordinary import MORE, TEMPLATE, both
from tests.tiny import clip, make_policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def policy(folder: Path) -> Policy:
    return models.load(folder, dtype="float32")


def pairs_of(policy: Policy, rows: Sequence[Preference] = MORE, features: Features | None = None) -> Pairs:
    return Pairs(rows, policy, template=TEMPLATE, frames=clip, features=features)


def changed(**update: str) -> list[Preference]:
    return [MORE[0], MORE[1].model_copy(update=update), *MORE[2:]]


def computed(
    policy: Policy, rows: Sequence[Preference] = MORE, *, max_bad: float = 0.0, features: Features | None = None
) -> Reference:
    module = SharedPrefix(policy, features=features)
    trained = policy.trainable()
    for name, parameter in policy.model.named_parameters():
        parameter.requires_grad_(name in trained)
    backend = plain.open(module, trained, BackendSettings(), states=lambda _: None)
    return reference.compute(backend, pairs_of(policy, rows, features), budget_tokens=200, max_bad_fraction=max_bad)


def test_the_packed_row_holds_prompt_chosen_rejected_of_each_pair(policy: Policy) -> None:
    pairs = pairs_of(policy)
    batch = pairs.batch([1, 2])
    at = 0
    for index, span in zip((1, 2), batch.layout.spans, strict=True):
        tokens, _ = pairs.load(index)
        for part, count in zip((tokens.prompt, tokens.chosen, tokens.rejected), span[1:], strict=True):
            assert batch.ids[0, at : at + count].tolist() == part.tolist()
            at += count
        chosen = slice(span.start + span.prompt, span.start + span.prompt + span.chosen)
        assert batch.positions[0, span.start : chosen.stop].tolist() == list(range(span.prompt + span.chosen))
        assert batch.positions[0, chosen.stop : span.end].tolist() == list(
            range(span.prompt, span.prompt + span.rejected)
        )
    assert batch.lengths == [len(part) for i in (1, 2) for part in (pairs.load(i)[0].chosen, pairs.load(i)[0].rejected)]
    assert batch.labels[batch.lengths[0] - 1] == policy.tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"rejected": "  "}, r"pair q1: the rejected response is empty: '  '"),
        ({"chosen": "<pad><pad> <pad>"}, r"pair q1: the chosen response is nothing but special tokens"),
        ({"chosen": "red <video>"}, r"pair q1: the chosen response holds a media placeholder"),
        ({"rejected": "red " * 600}, r"pair q1: prompt \d+ and response 601 tokens exceed the model's context of 512"),
    ],
    ids=["one-sided", "padding", "placeholder", "too long"],
)
def test_a_bad_pair_is_named_and_refused_or_left_out_and_counted(
    folder: Path, policy: Policy, update: dict[str, str], message: str
) -> None:
    with pytest.raises(BadPair, match=message):
        pairs_of(policy, changed(**update)).batch([1])
    with pytest.raises(
        DataError, match=rf"1 of 9 pairs cannot be trained on, train.max_bad_fraction allows 0:\n  {message}"
    ):
        computed(policy, changed(**update))
    made = computed(models.load(folder), changed(**update), max_bad=0.2)
    assert list(made.left_out) == [1]
    assert made.pairs() == [0, 2, 3, 4, 5, 6, 7, 8]
    assert made.chosen[1] == made.rejected[1] == 0


def test_no_pairs_are_refused(policy: Policy) -> None:
    with pytest.raises(DataError, match="no preference pairs"):
        pairs_of(policy, [])


def test_a_missing_video_is_an_error_by_name(policy: Policy) -> None:
    def frames(key: str) -> torch.Tensor:
        raise DataError(f"video {key!r} is not in the frame store")

    with pytest.raises(DataError, match="video 'v0' is not in the frame store"):
        Pairs(MORE, policy, template=TEMPLATE, frames=frames).batch([0])  # type: ignore[arg-type]


def test_the_reference_is_what_ordinary_passes_give(policy: Policy, folder: Path) -> None:
    made = computed(policy)
    with torch.no_grad():
        expected = both(models.load(folder, dtype="float64"), MORE, clip)
    assert torch.allclose(torch.stack([made.chosen, made.rejected]), expected, atol=1e-4)
    assert made.tokens(0) == int(made.lengths[0].sum()) > 40


def test_a_reference_file_belongs_to_one_policy_and_one_set_of_pairs(policy: Policy, tmp_path: Path) -> None:
    made = computed(policy, changed(rejected=" "), max_bad=0.2)
    path = tmp_path / "reference.safetensors"
    reference.save(path, made, policy="p" * 64, pairs="q" * 64)
    read = reference.load(path, policy="p" * 64, pairs="q" * 64)
    assert torch.equal(read.chosen, made.chosen)
    assert torch.equal(read.lengths, made.lengths)
    assert read.left_out == made.left_out
    with pytest.raises(StaleOutput, match=r"another policy: pppppppppppp stands there, this round has xxxxxxxxxxxx"):
        reference.load(path, policy="x" * 64, pairs="q" * 64)
    with pytest.raises(StaleOutput, match="another pairs"):
        reference.load(path, policy="p" * 64, pairs="x" * 64)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CorruptOutput, match="no reference log-probabilities"):
        reference.load(path, policy="p" * 64, pairs="q" * 64)


def test_the_tower_runs_once_a_video(folder: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    found = []
    for _ in range(2):
        policy = models.load(folder)
        policy.model.model.video_tower.register_forward_hook(lambda *_: seen.append(1))
        found.append(computed(policy, features=Features(tmp_path)))
        assert len(seen) == 3  # v0, v1, v2
    assert torch.equal(found[0].chosen, found[1].chosen)


def test_a_damaged_feature_file_is_named_and_a_missing_one_is_made_again(policy: Policy, tmp_path: Path) -> None:
    features = Features(tmp_path)
    features.put("v0", {"features": torch.ones(2, 3)})
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CorruptOutput, match=r"features of video 'v0': .*delete the file and run again"):
        features.get("v0")
    path.unlink()
    assert features.get("v0") is None


def test_what_a_killed_process_left_of_features_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from isr_dpo.dpo import features as module

    def killed(_: object, path: Path) -> None:
        path.write_bytes(b"half")
        os._exit(9)

    child = os.fork()
    if child == 0:
        try:
            monkeypatch.setattr(module, "save_file", killed)
            Features(tmp_path).put("v0", {"features": torch.ones(1)})
        finally:
            os._exit(1)  # never on with the tests
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    (left,) = (path for path in tmp_path.rglob("*") if path.is_file())
    long_ago = time.time() - 2 * YOUNG_SECONDS
    os.utime(left.parent, (long_ago, long_ago))
    features = Features(tmp_path)
    features.put("v0", {"features": torch.ones(1)})
    (only,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert only != left
    assert features.get("v0") is not None


def test_features_stop_where_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from isr_dpo.dpo import features as module

    monkeypatch.setattr(module, "KEPT_FREE_BYTES", 2**62)
    Features(tmp_path).put("v0", {"features": torch.ones(1)})
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_another_tower_has_another_digest(policy: Policy, folder: Path) -> None:
    assert tower_digest(policy) == tower_digest(models.load(folder))
    with torch.no_grad():
        policy.trainable()["lm_head.weight"].add_(1)
    assert tower_digest(policy) == tower_digest(models.load(folder))  # the language model does not count
    with torch.no_grad():
        next(policy.model.model.video_tower.parameters()).add_(1)
    assert tower_digest(policy) != tower_digest(models.load(folder))
