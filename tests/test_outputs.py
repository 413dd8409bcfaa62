import dataclasses
from pathlib import Path

import pytest

from isr_dpo import manifest, outputs
from isr_dpo.errors import StaleOutput, StoreError
from isr_dpo.manifest import Manifest
from isr_dpo.stores import join, open_store, read_bytes, write_bytes
from isr_dpo.stores.local import LocalStore
from tests.finished import FILES, ORIGIN, finish, opened


def test_an_output_is_complete_once_it_is_sealed(run_uri: str) -> None:
    uri = join(run_uri, "out")
    output = opened(uri)
    output.write("part-00000.jsonl", b"one\n")
    assert manifest.find(uri) is None
    sealed = output.seal(rows=1, deterministic=True)
    assert manifest.find(uri) == sealed
    assert sealed.origin == ORIGIN
    assert sealed.files["part-00000.jsonl"] == manifest.File(
        size=4,
        sha256="2c8b08da5ce60398e1f19af0e5dccc744df274b826abe585eaba68c525434806",  # printf 'one\n' | sha256sum
    )
    assert set(open_store(uri).list(uri)) == {"part-00000.jsonl", "manifest.json"}


def test_a_file_is_done_only_when_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = opened(str(tmp_path / "out"))
    seen = []

    def full(store: LocalStore, path: Path, uri: str) -> None:
        seen.append(output.done)
        raise StoreError("the disk is full")

    monkeypatch.setattr(LocalStore, "put", full)
    with pytest.raises(StoreError):
        output.write("part-00000.jsonl", b"one\n")
    assert seen == [set()]
    assert output.done == set()


def test_a_finished_output_of_the_same_origin_is_returned_not_redone(run_uri: str) -> None:
    uri = join(run_uri, "out")
    assert outputs.begin(uri, finish(uri).origin) == manifest.find(uri)


def test_an_interrupted_output_keeps_its_parts_and_ends_the_same(run_uri: str) -> None:
    whole, torn = join(run_uri, "whole"), join(run_uri, "torn")
    opened(torn).write("part-00000.jsonl", FILES["part-00000.jsonl"])
    resumed = opened(torn)
    assert resumed.done == {"part-00000.jsonl"}
    assert resumed.read("part-00000.jsonl") == b"one\n"
    again, straight = finish(torn), finish(whole)
    assert (again.digest, again.files) == (straight.digest, straight.files)


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": {**ORIGIN.inputs, "policy": "x" * 64}},
        {"recipe_section_digest": "x" * 64},
        {"prompts_digest": "x" * 64},
    ],
    ids=["input", "recipe", "prompts"],
)
def test_an_interrupted_output_of_another_origin_is_discarded(run_uri: str, change: dict[str, object]) -> None:
    uri = join(run_uri, "out")
    opened(uri).write("part-00007.jsonl", b"of another recipe\n")
    assert opened(uri, dataclasses.replace(ORIGIN, **change)).done == set()
    assert set(open_store(uri).list(uri)) == {"unfinished.json"}


def test_files_of_unknown_origin_are_discarded(run_uri: str) -> None:
    uri = join(run_uri, "out")
    write_bytes(join(uri, "part-00000.jsonl"), b"whose?\n")
    assert opened(uri).done == set()


def test_an_output_whose_attempt_was_killed_as_it_sealed_loses_its_marker(run_uri: str) -> None:
    uri = join(run_uri, "out")
    opened(uri)
    marker = read_bytes(join(uri, "unfinished.json"))
    sealed = finish(uri)
    write_bytes(join(uri, "unfinished.json"), marker)
    assert outputs.begin(uri, ORIGIN) == sealed
    assert set(open_store(uri).list(uri)) == {*FILES, "manifest.json"}


def test_an_output_that_another_process_finishes_just_now_is_not_discarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "out")
    other, look = opened(uri), LocalStore.list
    other.write("part-00000.jsonl", b"one\n")

    def late(store: LocalStore, place: str) -> dict[str, int]:
        if manifest.find(uri) is None:
            other.seal(rows=1, deterministic=True)
        return look(store, place)

    monkeypatch.setattr(LocalStore, "list", late)
    made = outputs.begin(uri, ORIGIN)
    assert isinstance(made, Manifest)
    manifest.verify(made)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inputs": {**ORIGIN.inputs, "policy": "x" * 64}}, "input policy differ"),
        ({"inputs": {**ORIGIN.inputs, "previous": "x" * 64}}, "input previous differ"),
        ({"recipe_section_digest": "x" * 64}, "the recipe keys of step generate differ"),
        ({"prompts_digest": "x" * 64}, "the prompts differ"),
        ({"kind": "contexts"}, "kind ('responses' -> 'contexts') differ"),
    ],
)
def test_a_finished_output_of_another_origin_is_refused_saying_what_differs(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    uri = str(tmp_path / "out")
    before = finish(uri)
    with pytest.raises(StaleOutput) as error:
        outputs.begin(uri, dataclasses.replace(ORIGIN, **change))
    assert said in str(error.value)
    assert uri in str(error.value)
    assert "--run-uri" in str(error.value)
    assert manifest.find(uri) == before


def test_a_late_writer_cannot_replace_what_another_finished(run_uri: str) -> None:
    uri = join(run_uri, "out")
    early, late, same, other = opened(uri), opened(uri), opened(uri), opened(uri)
    for output in (early, same):
        output.write("part-00000.jsonl", b"one\n")
    standing = early.seal(rows=1, deterministic=True)
    assert same.seal(rows=1, deterministic=True) == standing
    with pytest.raises(StaleOutput, match="another writer finished this output first"):
        other.seal(rows=0, deterministic=True)
    for name in ("part-00000.jsonl", "part-00001.jsonl"):
        with pytest.raises(StaleOutput, match="another writer finished this output first"):
            late.write(name, b"other\n")
    late.write("part-00000.jsonl", b"one\n")
    assert late.seal(rows=1, deterministic=True) == standing
    manifest.verify(standing)
    assert set(open_store(uri).list(uri)) == {"part-00000.jsonl", "manifest.json"}


def test_an_alias_stands_for_files_elsewhere(run_uri: str) -> None:
    sealed = finish(join(run_uri, "policy-00"))
    outputs.alias(join(run_uri, "policy-01"), sealed)
    outputs.alias(join(run_uri, "policy-01"), sealed)  # a restarted step says it again
    found = manifest.find(join(run_uri, "policy-01"))
    assert found == sealed
    assert (manifest.files(found) / "metrics.json").read_bytes() == b"{}"


def test_a_folder_is_put_with_what_lies_below(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "processor").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "processor" / "tokenizer.json").write_text("[]")
    output = opened(str(tmp_path / "policy"))
    output.put_folder(folder)
    assert set(output.seal(rows=0, deterministic=True).files) == {"config.json", "processor/tokenizer.json"}
