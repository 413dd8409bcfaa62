"""The embedded engine: results depend on the request alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from isr_dpo.engines import Choose, Sample
from isr_dpo.engines.hf import HFEngine
from isr_dpo.errors import ModelError
from tests.tiny import clip, make_policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> HFEngine:
    return opened(folder, batch_rows=4)


def opened(folder: Path, *, batch_rows: int) -> HFEngine:
    return HFEngine(folder, clip, dtype="float32", device="cpu", batch_rows=batch_rows)


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


def test_greedy_equals_the_models_own_generate(engine: HFEngine) -> None:
    request = replace(requests()[4], temperature=0.0, seeds=(0,))
    policy = engine._policy
    encoded = policy.encode([policy.chat(request.prompt)], [clip(request.video)])
    ids = torch.tensor(encoded.ids)
    out = policy.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), **encoded.videos[0], do_sample=False, max_new_tokens=6
    )
    expected = policy.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert engine.sample([request])[0][0].text == expected


def test_draws_follow_the_tempered_distribution(engine: HFEngine) -> None:
    request = Sample("v1", "what ?", tuple(range(600)), 0.7, 1.0, 1)
    policy = engine._policy
    encoded = policy.encode([policy.chat("what ?")], [clip("v1")])
    ids = torch.tensor(encoded.ids)
    with torch.no_grad():
        logits = policy.model(input_ids=ids, attention_mask=torch.ones_like(ids), **encoded.videos[0]).logits[0, -1]
    expected = (logits.double() / 0.7).softmax(-1)
    drawn = [text.text for text in engine.sample([request])[0]]
    words = [i for i in range(len(expected)) if i not in policy.tokenizer.all_special_ids]
    top = max(words, key=lambda i: float(expected[i]))
    share = drawn.count(policy.tokenizer.decode([top])) / len(drawn)
    assert abs(share - float(expected[top])) < 4 * (0.25 / 600) ** 0.5


def test_choose_reads_the_labels_after_the_cue(engine: HFEngine) -> None:
    policy = engine._policy
    choice = engine.choose([Choose("v3", "which is better ?", ("1", "2"), 0, "choice")])[0]
    text = policy.chat("which is better ?") + " choice"
    encoded = policy.encode([text], [clip("v3")])
    ids = torch.tensor(encoded.ids)
    with torch.no_grad():
        logits = policy.model(input_ids=ids, attention_mask=torch.ones_like(ids), **encoded.videos[0]).logits[0, -1]
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


def test_labels_that_are_not_single_tokens_are_refused(engine: HFEngine) -> None:
    with pytest.raises(ModelError, match=r"labels .* are not single tokens"):
        engine.choose([Choose("v3", "which ?", ("1", "1 2"), 0, "choice")])


def test_a_prompt_longer_than_the_context_names_its_video(engine: HFEngine) -> None:
    with pytest.raises(ModelError, match=r"video v9: a prompt of .* tokens exceeds the context"):
        engine.sample([Sample("v9", "what " * 600, (0,), 0.0, 1.0, 2)])


def test_results_do_not_depend_on_the_batch_size(folder: Path, engine: HFEngine) -> None:
    texts = [[t.text for t in row] for row in engine.sample(requests())]
    assert [[t.text for t in row] for row in opened(folder, batch_rows=7).sample(requests())] == texts


def test_an_unsupported_or_missing_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        opened(tmp_path, batch_rows=1)
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel is not supported; supported: VideoLlava"):
        opened(tmp_path, batch_rows=1)


def test_damaged_weights_are_a_model_error(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded as a VideoLlavaForConditionalGeneration"):
        opened(tmp_path, batch_rows=1)
