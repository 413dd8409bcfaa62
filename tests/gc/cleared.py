"""A run as training leaves it, small, with everything in it that clearing up may meet."""

from __future__ import annotations

import hashlib
from pathlib import Path

from isr_dpo import layout, manifest, outputs
from isr_dpo.config import Recipe
from isr_dpo.gc.kept import Registry
from isr_dpo.manifest import Manifest, Origin
from isr_dpo.outputs import Output
from isr_dpo.preflight import claim
from isr_dpo.stores import join, open_store, write_bytes
from isr_dpo.stores.s3 import client

WEIGHTS = 1000
"""Bytes of a policy's or of the masters'."""
NOBODY = Registry({}, frozenset())


def recipe(*, start: str = "builtin:world", tracking: str = "sqlite:///none.db") -> Recipe:
    return Recipe.model_validate(
        {
            "name": "small",
            "iterations": 6,
            "model": {"start": start, "registered_name": "small", "dtype": "bfloat16"},
            "data": {"train": "train.jsonl", "sets": {"dev": "dev.jsonl"}},
            "evaluate": {"full_at": [1, 5]},
            "tracking": {"uri": tracking},
        }
    )


def origin(kind: str, index: int) -> Origin:
    return Origin(kind, "train", {"policy": f"{index}" * 64}, "r" * 64, "p" * 64)


def made(uri: str, kind: str, index: int, **files: bytes) -> Manifest:
    out = begun(uri, kind, index, **files)
    return out.seal(rows=0, deterministic=True)


def begun(uri: str, kind: str, index: int, **files: bytes) -> Output:
    out = outputs.begin(uri, origin(kind, index))
    assert isinstance(out, Output)
    for name, content in files.items():
        out.write(name.replace("__", "."), content)
    return out


def policy(run_uri: str, index: int) -> Manifest:
    weights = {f"model-0000{part}-of-00002__safetensors": bytes([index, part]) * (WEIGHTS // 4) for part in (1, 2)}
    uri = layout.policy(run_uri, index)
    return made(uri, "policy", index, config__json=b"{}", tokenizer__json=b"{}", **weights)


def run(run_uri: str, *, policies: int = 6, tracking: str = "sqlite:///none.db") -> None:
    """Policies 01 to the last with masters of the last two, checkpoints of the last two rounds (those of the first of
    them were left behind), a round begun, rows, grades and a page."""
    claim(recipe(tracking=tracking), run_uri)
    start = manifest.Manifest(
        **vars(Origin("policy", "preflight", {}, "", "")),
        uri="builtin:world",
        code_version="",
        deterministic=True,
        rows=0,
        files={},
        digest=manifest.content_digest("policy", {}),
    )
    outputs.alias(layout.policy(run_uri, 0), start)
    made(layout.frames(run_uri), "frames", 0, frames_00000__tar=b"f" * 300)
    for index in range(1, policies + 1):
        policy(run_uri, index)
        made(layout.round_output(run_uri, index, "responses"), "responses", index, part_00000__jsonl=b"{}\n" * 9)
        made(join(layout.answers(run_uri, index), "dev"), "answers", index, part_00000__jsonl=b"{}\n")
    for index in (policies - 1, policies):
        made(layout.masters(run_uri, index), "masters", index, masters_00__safetensors=b"m" * WEIGHTS)
    for index in (policies - 1, policies):
        for step in ("step-000010", "step-000020", "step-000030"):
            made(join(checkpoints(run_uri, index), step), "checkpoint", index, state__safetensors=b"c" * WEIGHTS)
    begun(layout.round_output(run_uri, policies, "contexts"), "contexts", policies, part_00000__jsonl=b"{}\n")
    write_bytes(layout.report(run_uri), b"<html>")
    write_bytes(join(layout.graded(run_uri, 1, "caption", "dev"), "part-00000.jsonl"), b"{}\n")


def checkpoints(run_uri: str, index: int) -> str:
    return join(layout.round_output(run_uri, index, "training"), "checkpoints")


def abandon(run_uri: str, name: str, size: int) -> None:
    """What a writer that was killed leaves of a large object."""
    if run_uri.startswith("s3://"):
        bucket, _, key = run_uri.removeprefix("s3://").partition("/")
        named = {"Bucket": bucket, "Key": f"{key}/{name}"}
        upload = client().create_multipart_upload(**named)["UploadId"]
        client().upload_part(**named, UploadId=upload, PartNumber=1, Body=b"u" * size)
        return
    path = Path(run_uri, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(".undone-0123456789abcdef").write_bytes(b"u" * size)


def digest(run_uri: str) -> str:
    """Of all objects below the run, and of what no list shows."""
    found = hashlib.sha256()
    if run_uri.startswith("s3://"):
        bucket, _, key = run_uri.removeprefix("s3://").partition("/")
        for name in sorted(open_store(run_uri).list(run_uri)):
            head = client().head_object(Bucket=bucket, Key=f"{key}/{name}")
            found.update(f"{name} {head['ETag']} {head['LastModified']}\n".encode())
        for upload in client().list_multipart_uploads(Bucket=bucket, Prefix=key).get("Uploads", []):
            found.update(f"{upload['Key']} {upload['UploadId']}\n".encode())
        return found.hexdigest()
    for path in sorted(Path(run_uri).rglob("*")):
        state = path.stat()
        content = path.read_bytes() if path.is_file() else b""
        found.update(f"{path} {state.st_mtime_ns} {hashlib.sha256(content).hexdigest()}\n".encode())
    return found.hexdigest()
