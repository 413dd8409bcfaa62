"""A start that has had its seed DPO."""

from pathlib import Path

from isr_dpo import config, layout, manifest, outputs
from isr_dpo.manifest import Origin
from isr_dpo.steps.train import train_step


def test_without_seed_epochs_policy_01_is_the_start_whatever_the_dataset_holds(tmp_path: Path) -> None:
    recipe = config.parse(
        "{name: t, iterations: 2, model: {start: s, registered_name: t}, data: {train: a.jsonl, sets: {dev: b.jsonl}}, "
        "train: {seed_epochs: 0}}"
    )
    out = outputs.begin(str(tmp_path / "start"), Origin("policy", "train", {}, "", ""))
    assert isinstance(out, outputs.Output)
    start = out.seal(rows=0, deterministic=True)
    run = str(tmp_path / "run")
    result = train_step(recipe, {"policy": start}, run, 0)
    assert result.manifest == start == manifest.find(layout.policy(run, 1))
