import json
from pathlib import Path

import pytest

from isr_dpo import layout
from isr_dpo.config import Recipe
from isr_dpo.errors import CorruptOutput
from isr_dpo.manifest import Origin
from isr_dpo.outputs import Output, begin
from isr_dpo.report.summary import summarise
from isr_dpo.stores import join

RECIPE = Recipe.model_validate(
    {
        "name": "tiny",
        "iterations": 3,
        "model": {"start": "builtin:world", "registered_name": "tiny"},
        "data": {"train": "train.jsonl", "sets": {"dev": "dev.jsonl", "test": "test.jsonl"}},
    }
)


def finish(uri: str, metrics: dict[str, float]) -> None:
    output = begin(uri, Origin("test", "test", {}, "", ""))
    assert isinstance(output, Output)
    output.write("metrics.json", json.dumps(metrics).encode())
    output.seal(rows=1, deterministic=True)


def test_an_empty_run_has_policies_without_figures(tmp_path: Path) -> None:
    summary = summarise(str(tmp_path), RECIPE)
    assert [p.name for p in summary.policies] == ["policy-01", "policy-02", "policy-03"]
    assert summary.best is None
    assert all(not p.training and not p.evaluation for p in summary.policies)


def test_a_policy_carries_the_round_it_came_out_of(tmp_path: Path) -> None:
    run = str(tmp_path)
    finish(layout.round_output(run, 0, "training"), {"reward_accuracy": 0.5})
    finish(layout.round_output(run, 1, "training"), {"reward_accuracy": 0.75})
    finish(
        layout.round_output(run, 1, "preferences"), {"rows": 10, "pairs": 7, "dropped_tie": 2, "dropped_unparsed": 1}
    )
    seed, first, _ = summarise(run, RECIPE).policies
    assert seed.training == {"reward_accuracy": 0.5}
    assert seed.dropped == {}
    assert first.training == {"reward_accuracy": 0.75}
    assert first.dropped == {"tie": 2, "unparsed": 1}


def test_the_best_policy_is_the_earliest_of_highest_dev_accuracy(tmp_path: Path) -> None:
    for index, accuracy in [(1, 0.4), (2, 0.6), (3, 0.6)]:
        base = layout.evaluation(str(tmp_path), index)
        finish(join(base, "caption-dev"), {"accuracy": accuracy})
        if index == 3:
            finish(join(base, "caption-test"), {"accuracy": 0.9})
    summary = summarise(str(tmp_path), RECIPE)
    assert summary.best is not None
    assert summary.best.index == 2
    assert set(summary.policies[2].evaluation) == {"dev", "test"}


def test_an_altered_metrics_file_is_refused(tmp_path: Path) -> None:
    uri = layout.dataset(str(tmp_path))
    finish(uri, {"train_rows": 5})
    Path(uri, "metrics.json").write_text('{"train_rows": 6}')
    with pytest.raises(CorruptOutput, match="altered"):
        summarise(str(tmp_path), RECIPE)
