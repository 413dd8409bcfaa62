"""Archives of a hub: all of one commit, the token for the hub alone."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tenacity
from archives import chunk, write_rows

from isr_dpo.data.fetch import fetch, hub
from isr_dpo.errors import DataError, OutsideError, RecipeError, StoreError
from tests.servers.file_server import Asked, Manner, Served, file_server

COMMIT = hashlib.sha1(b"commit").hexdigest()
CHUNKS = {f"train_300k/chunk_{i}.tar.gz": chunk(2 * i, 2 * i + 1) for i in range(2)}


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only loopback is in reach anyway."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.asked.retry, "wait", tenacity.wait_none())  # type: ignore[attr-defined]
    monkeypatch.delenv("HF_TOKEN", raising=False)


def tree() -> list[dict[str, Any]]:
    files = [
        {
            "type": "file",
            "path": path,
            "size": len(content),
            "oid": hashlib.sha1(content).hexdigest(),
            "lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134},
        }
        for path, content in CHUNKS.items()
    ]
    readme = {"type": "file", "path": "train_300k/README.md", "size": 3, "oid": "0" * 40}
    return [*files, readme, {"type": "directory", "path": "train_300k/old", "oid": "1" * 40}]


@contextmanager
def a_hub(
    *,
    trouble: int | None = None,
    token: str | None = None,
    storing: Callable[[Asked, int], Manner] = lambda asked, n: Manner(),
) -> Iterator[tuple[Served, Served]]:
    """A hub with one data set, and the host where its files are stored."""
    signatures = itertools.count()
    with file_server({f"/{path}": content for path, content in CHUNKS.items()}, storing) as storage:

        def answer(asked: Asked, n: int) -> Manner:
            if trouble:
                return Manner(status=trouble, body=b"{}")
            if token and asked.headers.get("authorization") != f"Bearer {token}":
                return Manner(status=401, body=b"{}")
            path = asked.path.partition("?")[0]
            if path.startswith("/api/datasets/org/clips/revision/main") or path == "/api/datasets/org/clips":
                return Manner(body=json.dumps({"id": "org/clips", "sha": COMMIT}).encode())
            if path == f"/api/datasets/org/clips/tree/{COMMIT}/train_300k":
                return Manner(body=json.dumps(tree()).encode(), headers={"Content-Type": "application/json"})
            at_commit = f"/datasets/org/clips/resolve/{COMMIT}/"
            if path.startswith(at_commit):
                target = f"{storage.url}/{path.removeprefix(at_commit)}?X-Signature={next(signatures)}"
                return Manner(status=302, headers={"Location": target}, body=b"")
            return Manner(status=404, body=b'{"error": "not found"}', headers={"X-Error-Code": "RepoNotFound"})

        with file_server({}, answer) as served:
            yield served, storage


def test_archives_of_a_commit_come_from_where_the_hub_stores_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, dest = [write_rows(tmp_path / "rows.jsonl", "c0", "c3")], str(tmp_path / "dest")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with a_hub(token="hf_secret") as (served, storage):
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        fetched = fetch("hf://datasets/org/clips/train_300k", dest, rows=rows)
        again = fetch("hf://datasets/org/clips@main/train_300k/", dest, rows=rows, chunks=["chunk_{0..1}.tar.gz"])
    assert [outcome.state for outcome in (*fetched.outcomes, *again.outcomes)] == ["read"] * 2 + ["stands"] * 2
    assert fetched.missing == ()
    assert all("authorization" not in asked.headers for asked in storage.asked)
    mark = json.loads(next((tmp_path / "dest" / ".fetch").glob("chunk_0*")).read_text())
    content = CHUNKS["train_300k/chunk_0.tar.gz"]
    assert mark["identity"] == f"{hashlib.sha256(content).hexdigest()} {len(content)}"
    assert mark["place"] == "hf://datasets/org/clips/train_300k/chunk_0.tar.gz"  # also after another commit


def test_the_command_reads_the_environment(tmp_path: Path) -> None:
    rows, dest = write_rows(tmp_path / "rows.jsonl", "c1"), str(tmp_path / "dest")
    with a_hub(token="hf_secret") as (served, _):
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        command = [sys.executable, "-m", "isr_dpo.cli", "data", "fetch", "hf://datasets/org/clips/train_300k", dest]
        done = subprocess.run(
            [*command, "--rows", rows],
            env={**environment, "HF_ENDPOINT": served.url, "HF_TOKEN": "hf_secret"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "1 of 1 clips are there" in done.stdout
    assert "hf_secret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("source", "trouble", "error", "message"),
    [
        ("hf://datasets/org/clips/elsewhere", None, DataError, "no such data set, revision or folder"),
        ("hf://datasets/org/nothing/train_300k", None, DataError, "no such data set, revision or folder"),
        ("hf://datasets/org/clips/train_300k", 401, StoreError, "HF_TOKEN may not read it"),
        ("hf://datasets/org/clips/train_300k", 403, StoreError, "HF_TOKEN may not read it"),
        ("hf://datasets/org/clips/train_300k", 503, OutsideError, "the hub answers 503; run again"),
        ("hf://datasets/clips", None, RecipeError, "written as hf://datasets/ORGANISATION/NAME"),
        ("hf://datasets/o r g/clips/x", None, RecipeError, "o r g"),
    ],
)
def test_what_the_hub_refuses_is_said(
    monkeypatch: pytest.MonkeyPatch, source: str, trouble: int | None, error: type[Exception], message: str
) -> None:
    with a_hub(trouble=trouble) as (served, _):
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        with pytest.raises(error, match=message):
            hub.hub_chunks(source)


def test_a_hub_that_is_away_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with file_server({}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
    with pytest.raises(OutsideError, match=r"no answer from the hub .*check HF_ENDPOINT, run again"):
        hub.hub_chunks("hf://datasets/org/clips/train_300k")


def test_after_a_cut_the_hub_is_asked_for_a_new_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signed one may have run out."""
    rows, dest = [write_rows(tmp_path / "rows.jsonl", "c0", "c1")], str(tmp_path / "dest")
    third = len(CHUNKS["train_300k/chunk_0.tar.gz"]) // 3 + 1
    with a_hub(storing=lambda asked, n: Manner(cut=third)) as (served, storage):
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        fetched = fetch("hf://datasets/org/clips/train_300k", dest, rows=rows, chunks=["chunk_0.tar.gz"])
    assert fetched.missing == ()
    assert len({asked.path for asked in storage.asked}) == 3
    ranges = [asked.headers.get("range") for asked in storage.asked]
    assert ranges == [None, f"bytes={third}-", f"bytes={2 * third}-"]
