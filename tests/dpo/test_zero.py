"""DeepSpeed on two ranks of this machine's CPU trains what a plain loop trains, and gives back what it was given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from isr_dpo.dpo.backend import BackendSettings
from isr_dpo.dpo.launch import launch
from tests.dpo import toy
from tests.dpo.zero_worker import COMBINATIONS, FOUND, Found

ROOT = Path(__file__).parents[2]
Results = Mapping[BackendSettings, Found]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("OMP_NUM_THREADS", "1")
        launch(folder, ranks=2, on_line=lambda _: None, worker="tests.dpo.zero_worker")
    return folder


@pytest.fixture(scope="module")
def results(job: Path) -> Results:
    found: Results = torch.load(job / FOUND, weights_only=False)
    return found


def name(settings: BackendSettings) -> str:
    return f"stage {settings.zero_stage}, {settings.dtype}, accumulated in {settings.accumulate_dtype}"


all_settings = pytest.mark.parametrize("settings", COMBINATIONS, ids=name)
exact_settings = pytest.mark.parametrize("settings", [s for s in COMBINATIONS if s.dtype == "float32"], ids=name)
half_settings = pytest.mark.parametrize("settings", [s for s in COMBINATIONS if s.dtype == "bfloat16"], ids=name)


@exact_settings
def test_two_ranks_train_what_a_plain_loop_trains(results: Results, settings: BackendSettings) -> None:
    found, expected = results[settings], toy.plain_loop()
    assert found.norms == pytest.approx(expected.norms, rel=1e-5)
    assert max(expected.norms) > toy.MAX_GRAD_NORM
    start = toy.trained(toy.make())
    for key, weight in expected.weights.items():
        assert toy.relative(found.end[key].master, weight) <= 1e-5
        assert toy.relative(found.end[key].master - start[key], weight - start[key]) <= 1e-5
        assert toy.relative(found.end[key].exp_avg, expected.gradients[key]) <= 1e-5


@half_settings
def test_bf16_trains_nearly_the_same_on_fp32_masters(results: Results, settings: BackendSettings) -> None:
    found, expected = results[settings], toy.plain_loop()
    assert found.norms == pytest.approx(expected.norms, rel=2e-2)
    start = toy.trained(toy.make())
    for key, weight in expected.weights.items():
        assert toy.relative(found.end[key].master - start[key], weight - start[key]) <= 0.1
        assert not torch.equal(found.end[key].master, found.end[key].master.bfloat16().float())


@all_settings
def test_the_masters_start_as_the_weights_were_loaded(results: Results, settings: BackendSettings) -> None:
    start = results[settings].start
    for key, weight in toy.trained(toy.make()).items():
        assert torch.equal(start[key].master, weight), key
        assert not start[key].exp_avg.any()
        assert not start[key].exp_avg_sq.any()


@all_settings
def test_states_come_back_bit_for_bit_and_the_weights_are_their_rounding(
    results: Results, settings: BackendSettings
) -> None:
    found = results[settings]
    assert found.middle_again
    assert found.given_again
    assert found.weights_follow


@all_settings
def test_a_resumed_run_ends_as_an_undisturbed_one_bit_for_bit(results: Results, settings: BackendSettings) -> None:
    found = results[settings]
    assert found.resumed_norms == found.norms[toy.STEPS // 2 :]
    assert toy.equal(found.resumed_end, found.end)


@all_settings
def test_a_gradient_that_is_not_finite_is_reported_and_changes_nothing(
    results: Results, settings: BackendSettings
) -> None:
    assert not math.isfinite(results[settings].nan_norm)
    assert results[settings].nan_changes_nothing


@all_settings
def test_frozen_weights_stay(results: Results, settings: BackendSettings) -> None:
    assert results[settings].frozen_untouched


@all_settings
def test_ranks_tell_each_other_numbers_and_objects(results: Results, settings: BackendSettings) -> None:
    assert results[settings].summed == [3.0, 0.2]
    assert results[settings].buffers_exact
    assert results[settings].frozen_apart is (settings.zero_stage > 0)
    assert results[settings].gathered == [{"rank": 0}, {"rank": 1}]


def test_nothing_is_compiled(job: Path, results: Results) -> None:
    assert results
    assert not (job / "extensions").exists()
