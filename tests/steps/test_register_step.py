"""The step register: what a version says of the policy that a loop has trained."""

from __future__ import annotations

from pathlib import Path

from isr_dpo import layout, manifest, registry, tracking
from isr_dpo.mlflow_client import open_client
from tests.loop import recipe_for, run_loop
from tests.servers.mlflow_server import fresh_database


def test_a_loops_policy_is_registered_with_its_origin_and_can_be_promoted(
    tmp_path: Path, model: Path, world: Path
) -> None:
    uri, run_uri = fresh_database(tmp_path), str(tmp_path / "run")
    recipe = recipe_for(model, world, uri)
    run_loop(recipe, run_uri, until=("register", 1))
    version = open_client(uri).get_model_version_by_alias("small", "challenger")
    policy, dataset = manifest.find(layout.policy(run_uri, 1)), manifest.find(layout.dataset(run_uri))
    assert policy is not None
    assert dataset is not None
    found = {key.removeprefix("isr_dpo."): value for key, value in version.tags.items()}
    expected = {
        "run_uri": run_uri,
        "policy": "1",
        "round": "0",
        "digest": policy.digest,
        "code_version": policy.code_version,
        "dataset_digest": dataset.digest,
        "recipe_digest": recipe.digest(),
        "metric.rows": "6.0",
    }
    assert {key: found.get(key) for key in expected} == expected
    assert version.run_id == tracking.parent_id(recipe, run_uri=run_uri)
    assert version.source == policy.uri
    assert "rule\\-based" in version.description
    decision = registry.decide("small", uri=uri)
    assert decision.match is not None
    assert registry.promote(decision, uri=uri).champion == "1"
