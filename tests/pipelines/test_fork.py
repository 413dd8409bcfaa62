"""A run from another's policy."""

import json
from pathlib import Path

import pytest

from isr_dpo import config, layout, manifest, outputs
from isr_dpo.errors import RecipeError
from isr_dpo.manifest import Origin
from isr_dpo.preflight import claim
from pipelines import fork
from pipelines.__main__ import main
from tests.pipelines.submitted import scene

RECIPE = {
    "name": "tiny",
    "iterations": 3,
    "model": {"start": "builtin:world", "registered_name": "tiny"},
    "data": {"train": "train.jsonl", "sets": {"dev": "dev.jsonl"}},
    "evaluate": {"full_at": []},
}


def finished(run_uri: str, recipe: config.Recipe) -> None:
    """As much of a finished run as a fork looks at."""
    claim(recipe, run_uri)
    for uri, kind in ((layout.frames(run_uri), "frames"), (layout.dataset(run_uri), "dataset")):
        _seal(uri, kind)
    _seal(layout.policy(run_uri, 3), "policy")


def _seal(uri: str, kind: str) -> None:
    out = outputs.begin(uri, Origin(kind, "train", {}, "", ""))
    assert isinstance(out, outputs.Output)
    out.write("config.json", b"{}")
    out.seal(rows=1, deterministic=True)


@pytest.fixture
def run_uri(tmp_path: Path) -> str:
    uri = str(tmp_path / "parent")
    finished(uri, config.parse(json.dumps(RECIPE)))
    return uri


@pytest.mark.parametrize("end", ["", "/", "/manifest.json"])
def test_a_fork_has_the_runs_recipe_starts_from_its_policy_and_repeats_no_seed_dpo(run_uri: str, end: str) -> None:
    policy = layout.policy(run_uri, 3)
    made = fork.fork(policy + end, recipe=None, changes=["train.beta=0.2"])
    assert made.recipe.model.start == policy
    assert (made.recipe.train.seed_epochs, made.recipe.train.beta, made.recipe.iterations) == (0, 0.2, 3)
    assert made.reuses == run_uri


def test_a_fork_may_have_a_recipe_of_its_own(run_uri: str, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(json.dumps({**RECIPE, "name": "own", "iterations": 5}))
    made = fork.fork(layout.policy(run_uri, 3), recipe=str(own), changes=["train.seed_epochs=2"])
    assert (made.recipe.name, made.recipe.iterations, made.recipe.train.seed_epochs) == ("own", 5, 2)
    assert made.reuses == run_uri


def test_a_fork_may_be_a_variant_of_its_recipe(run_uri: str, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(json.dumps({**RECIPE, "name": "own", "variants": {"none": {"retrospect.context": "none"}}}))
    made = fork.fork(layout.policy(run_uri, 3), recipe=str(own), variant="none", changes=[])
    assert (made.recipe.name, made.recipe.retrospect.context) == ("own-none", "none")
    assert made.recipe.model.start == layout.policy(run_uri, 3)
    with pytest.raises(RecipeError, match="no variant 'none'; it has none"):
        fork.fork(layout.policy(run_uri, 3), recipe=None, variant="none", changes=[])


@pytest.mark.parametrize("change", ["data.train=other.jsonl", "data.frames=4", "data.sets={dev: other.jsonl}"])
def test_a_fork_with_other_data_prepares_them_itself(run_uri: str, change: str) -> None:
    assert fork.fork(layout.policy(run_uri, 3), recipe=None, changes=[change]).reuses is None


@pytest.mark.parametrize("name", ["policy-09", "dataset"])
def test_what_is_no_finished_policy_is_refused(run_uri: str, name: str) -> None:
    with pytest.raises(RecipeError, match=f"--fork .*{name}: (is no finished output|holds dataset of a run)"):
        fork.fork(f"{run_uri}/{name}", recipe=None, changes=[])


def test_a_new_run_reads_dataset_and_frames_where_they_lie(run_uri: str, tmp_path: Path) -> None:
    new = str(tmp_path / "new")
    for _ in range(2):
        fork.reuse(run_uri, new)
    for place in (layout.frames, layout.dataset):
        made = manifest.find(place(new))
        assert made == manifest.find(place(run_uri))
        assert made is not None
        assert manifest.files(made) == Path(place(run_uri))


def test_a_fork_is_submitted_with_what_it_reuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    environment = request.getfixturevalue("moto")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    from isr_dpo.stores import s3

    for cache in (s3._client, s3._signer):
        cache.cache_clear()
    bucket = f"s3://{environment['RUN_BUCKET']}/{tmp_path.name}"
    with scene(bucket, tmp_path, monkeypatch) as here:
        parent = f"{bucket}/parent"
        finished(parent, config.load(here.recipe))
        monkeypatch.setattr("pipelines.checks._estimated", lambda recipe, place: None)  # the policy has no sizes
        assert main(["submit", "--fork", layout.policy(parent, 3), *here.to(), "--set", "train.beta=0.2"]) == 0
        tree = here.kfp.runs[0]["pipeline_spec"]["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
        recipe = config.parse(tree["recipe"]["defaultValue"])
        assert (recipe.model.start, recipe.train.beta) == (layout.policy(parent, 3), 0.2)
        assert manifest.find(layout.dataset(here.run_uri)) == manifest.find(layout.dataset(parent))
    for cache in (s3._client, s3._signer):
        cache.cache_clear()
