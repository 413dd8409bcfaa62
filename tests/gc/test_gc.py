from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from isr_dpo import gc, layout, manifest, outputs, removed
from isr_dpo.dpo import checkpoint
from isr_dpo.errors import DataError, RunBusy
from isr_dpo.gc import survey
from isr_dpo.gc.kept import Registry, policy_in
from isr_dpo.manifest import BUILTIN, Manifest
from isr_dpo.preflight import claim
from isr_dpo.start import check_start, start_manifest
from isr_dpo.stores import join, open_store, read_bytes, write_bytes
from isr_dpo.stores.local import LocalStore
from isr_dpo.stores.lock import owner
from tests.gc import cleared
from tests.gc.cleared import NOBODY, WEIGHTS

on_every_store = pytest.mark.parametrize("run_uri", ["local", "moto", "ceph"], indirect=True)
on_two_stores = pytest.mark.parametrize("run_uri", ["local", "moto"], indirect=True)
PLAN = {
    "weights of policies not kept": 3 * WEIGHTS,  # of policies 2, 3 and 4
    "masters before the newest": WEIGHTS,
    "checkpoints not needed": 4 * WEIGHTS,  # all three of round 5, whose policy is done, and the oldest of round 6
}


def sizes(made: gc.Plan) -> dict[str, int]:
    """By reason; of masters and checkpoints without their manifests."""
    found: dict[str, int] = {}
    for removal in made.removals:
        small = removal.size % WEIGHTS if not removal.names and removal.upload is None else 0
        found[removal.reason] = found.get(removal.reason, 0) + removal.size - small
    return found


def weights_stand(run_uri: str) -> list[int]:
    names = open_store(run_uri).list(run_uri)
    return sorted({int(name[7:9]) for name in names if name.startswith("policy-") and name.endswith(".safetensors")})


def found(uri: str) -> Manifest:
    made = manifest.find(uri)
    assert made is not None
    return made


@pytest.fixture
def days_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers do not let a test make objects older, so a day passes at once."""
    monkeypatch.setattr(survey, "UNFINISHED_SECONDS", -60.0)


@on_every_store
def test_what_goes_and_what_stays(run_uri: str) -> None:
    cleared.run(run_uri)
    small = {
        name: size
        for name, size in open_store(run_uri).list(run_uri).items()
        if not name.endswith(".safetensors") and not name.startswith(("masters/policy-05", "round-05/training"))
    }
    made = gc.collect(run_uri, registry=NOBODY, run_id="gc-1")
    assert sizes(made) == PLAN
    assert made.kept == {1: ("evaluate.full_at",), 5: ("evaluate.full_at",), 6: ("newest",)}
    assert weights_stand(run_uri) == [1, 5, 6]
    standing = open_store(run_uri).list(run_uri)
    gone = {name for name in small if name.startswith("round-06/training/checkpoints/step-000010/")}
    assert small.keys() - standing.keys() == gone
    assert manifest.find(layout.masters(run_uri, 6)) is not None
    assert "masters/policy-05/manifest.json" not in standing
    left = {name.split("/")[3] for name in standing if name.startswith("round-06/training/checkpoints/")}
    assert left == {"step-000020", "step-000030"}
    assert gc.plan(run_uri, registry=NOBODY).removals == ()


@on_every_store
@pytest.mark.usefixtures("days_later")
def test_a_dry_run_changes_nothing(run_uri: str) -> None:
    cleared.run(run_uri)
    cleared.begun(layout.policy(run_uri, 7), "policy", 7, model__safetensors=b"half")
    cleared.abandon(run_uri, "policy-07/model.safetensors", 50)
    before = cleared.digest(run_uri)
    planned = gc.plan(run_uri, registry=NOBODY)
    assert {removal.reason for removal in planned.removals} == {*PLAN, "unfinished for a day", "abandoned uploads"}
    assert cleared.digest(run_uri) == before
    done = gc.collect(run_uri, registry=NOBODY, run_id="gc-1")
    assert [(r.reason, r.uri, r.size) for r in done.removals] == [(r.reason, r.uri, r.size) for r in planned.removals]
    assert cleared.digest(run_uri) != before


@on_every_store
@pytest.mark.usefixtures("days_later")
def test_what_killed_writers_left_goes_and_unfinished_rows_stay(run_uri: str) -> None:
    cleared.run(run_uri)
    cleared.begun(layout.policy(run_uri, 7), "policy", 7, model__safetensors=b"half" * 100)
    cleared.abandon(run_uri, "policy-07/other.safetensors", 50)
    made = gc.collect(run_uri, registry=NOBODY, run_id="gc-1")
    by_reason = {removal.reason: removal for removal in made.removals}
    assert by_reason["unfinished for a day"].uri == layout.policy(run_uri, 7)
    assert by_reason["unfinished for a day"].size > 400
    assert by_reason["abandoned uploads"].size == 50
    standing = open_store(run_uri).list(run_uri)
    assert not [name for name in standing if name.startswith("policy-07/")]
    assert "round-06/contexts/unfinished.json" in standing
    assert "round-06/contexts/part_00000.jsonl" in standing
    assert gc.plan(run_uri, registry=NOBODY).removals == ()


@pytest.mark.parametrize("run_uri", ["local", "ceph"], indirect=True)  # moto dates every upload back to 2010
def test_work_of_the_last_day_stays(run_uri: str) -> None:
    cleared.run(run_uri)
    cleared.begun(layout.policy(run_uri, 7), "policy", 7, model__safetensors=b"half")
    cleared.abandon(run_uri, "policy-07/other.safetensors", 50)
    assert sizes(gc.plan(run_uri, registry=NOBODY)) == PLAN


def test_a_day_is_counted_from_the_last_write(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    cleared.run(run)
    cleared.begun(layout.policy(run, 7), "policy", 7, a__safetensors=b"half", b__safetensors=b"half")
    old = time.time() - 25 * 3600
    for path in Path(layout.policy(run, 7)).iterdir():
        os.utime(path, (old, old))
    assert "unfinished for a day" in sizes(gc.plan(run, registry=NOBODY))
    os.utime(Path(layout.policy(run, 7)) / "b.safetensors")
    assert sizes(gc.plan(run, registry=NOBODY)) == PLAN


@on_every_store
def test_a_policy_without_weights_says_so_and_its_run_stays_complete(run_uri: str) -> None:
    cleared.run(run_uri)
    before = found(layout.policy(run_uri, 3))
    gc.collect(run_uri, registry=NOBODY, run_id="gc-1")
    made = found(layout.policy(run_uri, 3))
    assert made == before
    manifest.verify(made)
    assert outputs.begin(layout.policy(run_uri, 3), made.origin) == made  # the step that made it finds it done
    assert (manifest.files(made, {"config.json"}) / "config.json").read_bytes() == b"{}"
    with pytest.raises(DataError, match=r"policy-03: its weights were removed by `isr-dpo gc` on 20.*not kept"):
        manifest.files(made)
    with pytest.raises(DataError, match="its weights were removed"):
        start_manifest(cleared.recipe(start=layout.policy(run_uri, 3)))
    start_manifest(cleared.recipe(start=layout.policy(run_uri, 5)))


def test_a_removed_local_start_is_named_before_anything_else(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    cleared.run(run)
    gc.collect(run, registry=NOBODY, run_id="gc-1")
    with pytest.raises(DataError, match="its weights were removed"):
        check_start(cleared.recipe(start=layout.policy(run, 3)))


def test_another_missing_file_of_a_policy_is_still_damage(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    cleared.run(run)
    gc.collect(run, registry=NOBODY, run_id="gc-1")
    Path(layout.policy(run, 3), "config.json").unlink()
    made = found(layout.policy(run, 3))
    with pytest.raises(manifest.CorruptOutput, match=r"config\.json is missing"):
        manifest.verify(made)
    with pytest.raises(manifest.CorruptOutput, match=r"config\.json is missing"):
        manifest.files(made, {"config.json"})


class Cut(Exception):
    """Stands for a kill."""


@on_two_stores
@pytest.mark.usefixtures("days_later")
def test_cut_anywhere_nothing_half_deleted_is_taken_for_whole(
    run_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write and deletion is a place to be killed at; the next call goes on."""
    cleared.run(run_uri)
    cleared.begun(layout.policy(run_uri, 7), "policy", 7, model__safetensors=b"half")
    kind: Any = type(open_store(run_uri))
    delete = kind.delete
    left = 0

    def cut(self: Any, uri: str) -> None:
        nonlocal left
        if left == 0:
            raise Cut
        left -= 1
        delete(self, uri)

    monkeypatch.setattr(kind, "delete", cut)
    cuts = 0
    while True:
        left = 1 if cuts % 2 else 0
        try:
            gc.collect(run_uri, registry=NOBODY, run_id=f"gc-{cuts}")
            break
        except Cut:
            cuts += 1
        monkeypatch.setenv("ISR_DPO_CACHE", str(tmp_path / f"cache-{cuts}"))
        for index in range(1, 7):
            made = found(layout.policy(run_uri, index))
            manifest.verify(made)
            whole = len([n for n in open_store(run_uri).list(made.uri) if n.endswith(".safetensors")]) == 2
            if whole and removed.find(made.uri) is None:
                manifest.files(made)
            elif not whole:
                with pytest.raises(DataError, match="were removed"):
                    manifest.files(made)
        for index in (5, 6):
            if (masters := manifest.find(layout.masters(run_uri, index))) is not None:
                manifest.verify(masters)
        assert cuts < 60
    assert cuts > 10
    assert weights_stand(run_uri) == [1, 5, 6]
    assert gc.plan(run_uri, registry=NOBODY).removals == ()


def test_a_folder_cut_in_its_deletion_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk a folder is renamed first; the rest goes with the next call, a day later."""
    run = str(tmp_path / "run")
    cleared.run(run)

    def killed(*_: Any, **__: Any) -> None:
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr("isr_dpo.stores.local.shutil.rmtree", killed)
        with pytest.raises(Cut):
            LocalStore().delete(layout.masters(run, 5))
    assert manifest.find(layout.masters(run, 5)) is None
    (undone,) = Path(run, "masters").glob(".undone-*")
    old = time.time() - 25 * 3600
    for path in (*undone.rglob("*"), undone):
        os.utime(path, (old, old))
    made = gc.collect(run, registry=NOBODY, run_id="gc-1")
    assert "abandoned uploads" in sizes(made)
    assert not undone.exists()


@on_two_stores
def test_a_live_run_is_left_alone(run_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cleared.run(run_uri)
    with owner(run_uri, "live"), pytest.raises(RunBusy, match="belongs to the run 'live', which is alive"):
        gc.collect(run_uri, registry=NOBODY, run_id="gc-1")
    assert weights_stand(run_uri) == [1, 2, 3, 4, 5, 6]
    with owner(run_uri, "live"):
        assert sizes(gc.plan(run_uri, registry=NOBODY)) == PLAN


@on_two_stores
def test_a_policy_that_its_run_has_not_answered_for_stays_though_nobody_holds_the_run(run_uri: str) -> None:
    """The task that will read it waits for a node."""
    cleared.run(run_uri)
    open_store(run_uri).delete(join(layout.answers(run_uri, 3), "dev"))
    made = gc.collect(run_uri, registry=NOBODY, run_id="gc-1")
    assert made.kept[3] == ("not answered for yet",)
    assert weights_stand(run_uri) == [1, 3, 5, 6]


def test_the_reference_of_all_rounds_stays_until_the_last_is_trained(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    cleared.run(run)
    tree = json.loads(read_bytes(layout.run_file(run)))
    tree["recipe"]["train"]["reference"], tree["recipe"]["evaluate"]["full_at"] = "initial", []
    for iterations, kept in ((7, {1, 6}), (6, {6})):
        tree["recipe"]["iterations"] = iterations
        write_bytes(layout.run_file(run), json.dumps(tree).encode())
        assert gc.plan(run, registry=NOBODY).kept.keys() == kept


@on_two_stores
def test_the_newest_policy_s_masters_must_stand_before_others_go(run_uri: str) -> None:
    cleared.run(run_uri)
    open_store(run_uri).delete(layout.masters(run_uri, 6))
    gc.collect(run_uri, registry=NOBODY, run_id="gc-1")
    assert manifest.find(layout.masters(run_uri, 5)) is not None


@on_two_stores
def test_origins_of_forks_stay(run_uri: str) -> None:
    """Beside the run, in a recipe that has begun nothing yet, or known to the registry alone."""
    cleared.run(run_uri)
    beside, far = run_uri + "-beside", join(run_uri + "-store", "deep", "fork")
    claim(cleared.recipe(start=layout.policy(run_uri, 2)), beside)
    claim(cleared.recipe(start="builtin:world"), far)
    outputs.alias(layout.policy(far, 0), found(layout.policy(run_uri, 4)))
    write_bytes(join(run_uri + "-no-run", "object"), b"x")
    alone = gc.plan(run_uri, registry=NOBODY)
    assert alone.kept[2] == (f"start of {beside}",)
    assert 4 not in alone.kept
    known = gc.plan(run_uri, registry=Registry({}, frozenset({far, run_uri, run_uri + "-gone"})))
    assert known.kept[4] == (f"start of {far}",)
    assert known.kept.keys() == {1, 2, 4, 5, 6}


def test_a_run_that_cannot_be_asked_stops_it(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    cleared.run(run)
    write_bytes(join(str(tmp_path), "other", "run.json"), b"not json")
    with pytest.raises(manifest.CorruptOutput, match="nobody knows what it starts from"):
        gc.plan(run, registry=NOBODY)


def test_places_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert policy_in("s3://bucket/runs/a", "s3://bucket/runs/a/policy-03") == 3
    assert policy_in("s3://bucket/runs/a", "s3://bucket/runs/a2/policy-03") is None
    assert policy_in("s3://bucket/runs/a/", "s3://bucket/runs/a/policy-03/") == 3
    assert policy_in("runs/a", str(tmp_path / "runs" / "a" / "policy-03")) == 3
    assert policy_in(str(tmp_path / "elsewhere" / "a"), "runs/a/policy-03") == 3, "it may be this one"
    assert policy_in(str(tmp_path / "elsewhere" / "a"), "runs/b/policy-03") is None
    assert policy_in("runs/a", f"{BUILTIN}world") is None
    assert policy_in("runs/a", "runs/a/masters/policy-03") is None
    assert policy_in("runs/a", "file://" + str(tmp_path / "runs" / "a" / "policy-12")) == 12


def test_policies_can_be_kept_by_name(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    cleared.run(run)
    made = gc.plan(run, registry=NOBODY, keep=[3, 5])
    assert made.kept[3] == ("--keep",)
    assert made.kept[5] == ("evaluate.full_at", "--keep")
    with pytest.raises(DataError, match="--keep 9: no such policy of its own; it has 1, 2, 3, 4, 5, 6"):
        gc.plan(run, registry=NOBODY, keep=[9])
    with pytest.raises(DataError, match=r"no run\.json there"):
        gc.collect(str(tmp_path / "nothing"), registry=NOBODY, run_id="gc-1")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("run_uri", ["moto"], indirect=True)
def test_copies_in_this_machine_s_cache_go_with_what_they_copy(
    run_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISR_DPO_CACHE", str(tmp_path / "cache"))
    cleared.run(run_uri)
    folders = {index: manifest.files(found(layout.policy(run_uri, index))) for index in (1, 3)}
    job = tmp_path / "cache" / "train" / survey.job_key(run_uri, 3, found(layout.policy(run_uri, 4)))
    other = tmp_path / "cache" / "train" / "0123456789abcdef"
    for folder in (job, job.with_name(job.name + "-node-1"), other):
        (folder / "logs").mkdir(parents=True)
    made = gc.collect(run_uri, registry=NOBODY, run_id="gc-1")
    assert sizes(made).keys() == {*PLAN, "this machine's cache"}
    assert folders[1].exists()
    assert not folders[3].exists()
    assert [path.name for path in (tmp_path / "cache" / "train").iterdir()] == [other.name]


def test_as_many_checkpoints_stay_as_the_trainer_keeps() -> None:
    assert survey.CHECKPOINTS_KEPT == checkpoint.KEPT


def test_the_marker_is_read_or_named(tmp_path: Path) -> None:
    write_bytes(str(tmp_path / "removed.json"), b"[]")
    with pytest.raises(manifest.CorruptOutput, match="does not say what was removed"):
        removed.find(str(tmp_path))
    assert read_bytes(str(tmp_path / "removed.json")) == b"[]"
