import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isr_dpo import manifest, outputs
from isr_dpo.digests import code_version
from isr_dpo.errors import CorruptOutput
from isr_dpo.manifest import Manifest
from isr_dpo.stores import join, open_store, read_bytes, write_bytes
from tests.finished import FILES, ORIGIN, finish

on_s3 = pytest.mark.parametrize("run_uri", ["moto", "ceph"], indirect=True)


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


def test_a_moved_output_is_read_where_it_lies_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = finish("runs/a/out")
    outputs.alias("runs/a/same", made)
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


def test_a_manifest_travels_as_json(tmp_path: Path) -> None:
    sealed = finish(str(tmp_path / "out"))
    assert Manifest.from_json(sealed.to_json()) == sealed


def test_the_code_version_names_package_and_sources() -> None:
    version, _, digest = code_version().partition("+")
    assert version[0].isdigit()
    assert len(digest) == 12
