import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isr_dpo import manifest
from isr_dpo.digests import code_version
from isr_dpo.errors import CorruptOutput, StaleOutput, StoreError
from isr_dpo.manifest import Manifest, Origin, Output
from isr_dpo.stores import join, open_store, read_bytes, write_bytes
from isr_dpo.stores.local import LocalStore

ORIGIN = Origin(
    kind="responses",
    step="generate",
    inputs={"policy": "p" * 64, "dataset": "d" * 64},
    recipe_section_digest="r" * 64,
    prompts_digest="q" * 64,
)
FILES = {"part-00000.jsonl": b"one\n", "part-00001.jsonl": b"two\nthree\n", "metrics.json": b"{}"}

on_s3 = pytest.mark.parametrize("run_uri", ["moto", "ceph"], indirect=True)


def opened(uri: str, origin: Origin = ORIGIN) -> Output:
    output = manifest.begin(uri, origin)
    assert isinstance(output, Output)
    return output


def finish(uri: str, origin: Origin = ORIGIN, files: dict[str, bytes] = FILES) -> Manifest:
    output = opened(uri, origin)
    for name in files.keys() - output.done:
        output.write(name, files[name])
    return output.seal(rows=3, deterministic=True)


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
    assert manifest.begin(uri, finish(uri).origin) == manifest.find(uri)


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
    assert manifest.begin(uri, ORIGIN) == sealed
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
    made = manifest.begin(uri, ORIGIN)
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
        manifest.begin(uri, dataclasses.replace(ORIGIN, **change))
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


def test_files_lie_in_a_local_folder(run_uri: str) -> None:
    sealed = finish(join(run_uri, "out"), files={**FILES, "deep/er/model.safetensors": bytes(1000)})
    folder = manifest.files(sealed)
    for name, content in FILES.items():
        assert (folder / name).read_bytes() == content
    assert (folder / "deep" / "er" / "model.safetensors").read_bytes() == bytes(1000)


def test_only_the_named_files_are_fetched(run_uri: str) -> None:
    sealed = finish(join(run_uri, "out"), files={"a": os.urandom(20), "b": b"b"})
    open_store(run_uri).delete(join(run_uri, "out", "b"))
    assert (manifest.files(sealed, ["a"]) / "a").is_file()
    with pytest.raises(CorruptOutput, match="out/b is missing"):
        manifest.files(sealed)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"onE\n", "was altered"), (b"one", "has 3 bytes, its manifest says 4"), (None, "is missing")],
)
def test_an_altered_file_is_caught_by_its_manifest(run_uri: str, content: bytes | None, said: str) -> None:
    sealed = finish(join(run_uri, "out"), files={"part-00000.jsonl": b"one\n", "unique": os.urandom(20)})
    uri = join(run_uri, "out", "part-00000.jsonl")
    if content is None:
        open_store(uri).delete(uri)
    else:
        write_bytes(uri, content)
    with pytest.raises(CorruptOutput, match=f"{said}.*Delete the directory") as error:
        manifest.files(sealed)
    assert uri in str(error.value)
    if said != "was altered" or "://" not in run_uri:  # remote files are hashed as they are read
        with pytest.raises(CorruptOutput, match=said):
            manifest.verify(sealed)


def test_standing_files_verify(run_uri: str) -> None:
    manifest.verify(finish(join(run_uri, "out")))


@on_s3
def test_fetched_files_are_kept_and_mended(run_uri: str) -> None:
    sealed = finish(join(run_uri, "out"), files={"a": os.urandom(1000)})
    kept = manifest.files(sealed) / "a"
    content, fetched_at = kept.read_bytes(), kept.stat().st_mtime_ns
    manifest.files(sealed)
    assert kept.stat().st_mtime_ns == fetched_at
    kept.write_bytes(b"damaged")
    assert (manifest.files(sealed) / "a").read_bytes() == content


@pytest.mark.parametrize(
    "damage",
    [
        lambda tree: {**tree, "files": {**tree["files"], "metrics.json": {"size": 2, "sha256": "0" * 64}}},
        lambda tree: {**tree, "digest": "0" * 64},
        lambda tree: {k: v for k, v in tree.items() if k != "files"},
        lambda tree: {**tree, "extra": 1},
        lambda tree: [],
    ],
    ids=["file", "digest", "no files", "unknown key", "no tree"],
)
def test_an_altered_manifest_is_refused(tmp_path: Path, damage: Callable[[Any], Any]) -> None:
    uri = str(tmp_path / "out")
    finish(uri)
    text = damage(json.loads(read_bytes(join(uri, "manifest.json"))))
    write_bytes(join(uri, "manifest.json"), json.dumps(text).encode())
    with pytest.raises(CorruptOutput, match=r"out/manifest\.json: .*delete its directory"):
        manifest.find(uri)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_a_manifest_that_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    write_bytes(str(tmp_path / "out" / "manifest.json"), content)
    with pytest.raises(CorruptOutput, match=r"out/manifest\.json: not a manifest"):
        manifest.find(str(tmp_path / "out"))


def test_a_digest_covers_kind_names_and_content_and_nothing_else(tmp_path: Path) -> None:
    outputs = [
        finish(str(tmp_path / str(number)), origin, files).digest
        for number, (origin, files) in enumerate(
            [
                (ORIGIN, {"a": b"1", "b": b"2"}),
                (dataclasses.replace(ORIGIN, step="other", prompts_digest="x"), {"b": b"2", "a": b"1"}),
                (ORIGIN, {"a": b"2", "b": b"1"}),
                (ORIGIN, {"a": b"1", "c": b"2"}),
                (ORIGIN, {"a": b"1"}),
                (dataclasses.replace(ORIGIN, kind="contexts"), {"a": b"1", "b": b"2"}),
            ]
        )
    ]
    assert outputs[0] == outputs[1]
    assert len(set(outputs)) == 5


def test_an_alias_stands_for_files_elsewhere(run_uri: str) -> None:
    sealed = finish(join(run_uri, "policy-00"))
    manifest.alias(join(run_uri, "policy-01"), sealed)
    manifest.alias(join(run_uri, "policy-01"), sealed)  # a restarted step says it again
    found = manifest.find(join(run_uri, "policy-01"))
    assert found == sealed
    assert (manifest.files(found) / "metrics.json").read_bytes() == b"{}"


def test_a_moved_output_is_read_where_it_lies_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = finish("runs/a/out")
    manifest.alias("runs/a/same", made)
    (tmp_path / "runs" / "a" / "same").rename(tmp_path / "same")
    (tmp_path / "runs" / "a").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "runs")
    found = manifest.find(str(tmp_path / "moved" / "out"))
    assert found is not None
    assert found.digest == made.digest
    assert (manifest.files(found) / "part-00000.jsonl").read_bytes() == b"one\n"
    alias = manifest.find(str(tmp_path / "same"))
    assert alias is not None
    assert alias.uri == "runs/a/out", "an alias has no files of its own"


def test_a_folder_is_put_with_what_lies_below(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "processor").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "processor" / "tokenizer.json").write_text("[]")
    output = opened(str(tmp_path / "policy"))
    output.put_folder(folder)
    assert set(output.seal(rows=0, deterministic=True).files) == {"config.json", "processor/tokenizer.json"}


def test_a_manifest_travels_as_json(tmp_path: Path) -> None:
    sealed = finish(str(tmp_path / "out"))
    assert Manifest.from_json(sealed.to_json()) == sealed


def test_the_code_version_names_package_and_sources() -> None:
    version, _, digest = code_version().partition("+")
    assert version[0].isdigit()
    assert len(digest) == 12
