"""A prefix of an S3 bucket as a store: AWS, Ceph, MinIO and whatever speaks the same.

Endpoint, region and credentials come from the environment alone (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ... or the role
of the machine). Bytes are verified on the way in by the server (the signature covers them), on the way out by length in
botocore and by SHA-256 in `manifest.files`.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import boto3
from boto3.s3.transfer import TransferConfig, create_transfer_manager
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as UnreachableError
from s3transfer.exceptions import RetriesExceededError  # type: ignore[import-untyped]

from isr_dpo.errors import OutsideError, RecipeError, StoreError
from isr_dpo.stores import Exists, Missing
from isr_dpo.stores.local import explain
from isr_dpo.stores.surveyed import Aged, Upload

_MIB = 1 << 20


class S3Store:
    """Objects of a bucket; a URI is `s3://bucket/key`. Files of `multipart_bytes` or more travel in parallel parts.

    Conditional creation is one request, so that it works where the server (Ceph) does not honour the condition on
    multipart uploads: `put(if_absent=True)` refuses files that would need parts. Manifests and locks are small.

    Raises:
        StoreError: wrong bucket or credentials.
        OutsideError: the endpoint stayed away, or failing, over the retries (AWS_MAX_ATTEMPTS, 4 by default).
    """

    def __init__(self, *, multipart_bytes: int = 32 * _MIB, part_bytes: int = 16 * _MIB, threads: int = 10) -> None:
        self._multipart_bytes = multipart_bytes
        self._transfers = TransferConfig(
            multipart_threshold=multipart_bytes, multipart_chunksize=part_bytes, max_concurrency=threads
        )

    def get(self, uri: str, path: Path) -> None:
        bucket, key = _split(uri)
        with _translated(uri), create_transfer_manager(client(), self._transfers) as transfers:
            transfers.download(bucket, key, str(path)).result()

    def put(self, path: Path, uri: str, *, if_absent: bool = False) -> None:
        bucket, key = _split(uri)
        size = path.stat().st_size
        if if_absent and size >= self._multipart_bytes:
            raise ValueError(
                f"{uri}: {size} bytes cannot be created conditionally, less than {self._multipart_bytes} can; "
                "only manifests and locks should"
            )
        if size < self._multipart_bytes:
            content = path.read_bytes()
            with _translated(uri):
                _put(bucket, key, content, {"IfNoneMatch": "*"} if if_absent else {})
            return
        with _translated(uri), create_transfer_manager(client(), self._transfers) as transfers:
            transfers.upload(str(path), bucket, key).result()
            stored = client().head_object(Bucket=bucket, Key=key)["ContentLength"]
        if stored != size:
            raise OutsideError(f"{uri}: stored {stored} of {size} bytes; run again")

    def list(self, uri: str) -> dict[str, int]:
        bucket, key = _split(uri)
        prefix = f"{key}/" if key else ""
        with _translated(uri):
            pages = client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            return {o["Key"].removeprefix(prefix): o["Size"] for page in pages for o in page.get("Contents", [])}

    def delete(self, uri: str) -> None:
        bucket, key = _split(uri)
        names = self.list(uri)
        keys = [*([key] if key else []), *(f"{key}/{name}".lstrip("/") for name in names)]
        keys.sort(key=lambda key: not key.endswith("/manifest.json"))  # first: no manifest may outlive its files
        with _translated(uri):
            for start in range(0, len(keys), 1000):
                batch = [{"Key": key} for key in keys[start : start + 1000]]
                answer = client().delete_objects(Bucket=bucket, Delete={"Objects": batch, "Quiet": True})
                if errors := answer.get("Errors"):
                    raise StoreError(f"s3://{bucket}/{errors[0]['Key']}: not deleted: {errors[0].get('Code')}")


class Tagged(NamedTuple):
    """A small object and the tag that changes whenever it is written with other content."""

    content: bytes
    tag: str


def read_tagged(uri: str) -> Tagged:
    """Raises Missing."""
    bucket, key = _split(uri)
    with _translated(uri):
        answer = client().get_object(Bucket=bucket, Key=key)
        return Tagged(answer["Body"].read(), answer["ETag"])


def swap(uri: str, content: bytes, tag: str | None) -> str:
    """Writes a small object if it still has `tag` (None: if there is none); exactly one of two racing writers wins.

    Returns its new tag. Raises Exists where another writer came first, Exists or Missing where it was deleted.
    """
    bucket, key = _split(uri)
    with _translated(uri):
        if tag is None:
            return _put(bucket, key, content, {"IfNoneMatch": "*"})
        try:
            return _put(bucket, key, content, {"IfMatch": tag.strip('"')})  # Ceph knows a tag only without its quotes
        except ClientError as error:
            if _status(error) != 412:
                raise
        return _put(bucket, key, content, {"IfMatch": tag})
    raise AssertionError


def address(uri: str, *, seconds: int = 3600) -> str:
    """A URL at which anybody can read the object for so long; it holds a signature, so it is never shown."""
    bucket, key = _split(uri)
    with _translated(uri):
        return str(
            _signer(os.getpid()).generate_presigned_url(
                "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=seconds
            )
        )


@functools.cache
def _signer(_pid: int) -> Any:
    """botocore signs addresses in the old way by default, which newer buckets refuse."""
    return boto3.session.Session().client("s3", config=client().meta.config.merge(Config(signature_version="s3v4")))


def aged(uri: str) -> dict[str, Aged]:
    """`surveyed.aged`."""
    bucket, key = _split(uri)
    prefix = f"{key}/" if key else ""
    with _translated(uri):
        pages = client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return {
            found["Key"].removeprefix(prefix): Aged(found["Size"], _seconds_since(found["LastModified"]))
            for page in pages
            for found in page.get("Contents", [])
        }
    raise AssertionError


def folders(uri: str) -> list[str]:
    """`surveyed.folders`."""
    bucket, key = _split(uri)
    prefix = f"{key}/" if key else ""
    with _translated(uri):
        pages = client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
        found = [below["Prefix"] for page in pages for below in page.get("CommonPrefixes", [])]
        return [name.removeprefix(prefix).rstrip("/") for name in found]
    raise AssertionError


def uploads(uri: str) -> list[Upload]:
    """`surveyed.uploads`."""
    bucket, key = _split(uri)
    found = []
    with _translated(uri):
        pages = (
            client().get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=f"{key}/" if key else "")
        )
        for upload in (upload for page in pages for upload in page.get("Uploads", [])):
            named = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
            try:
                parts = client().get_paginator("list_parts").paginate(**named)
                size = sum(part["Size"] for page in parts for part in page.get("Parts", []))
            except ClientError as error:
                if _status(error) != 404:
                    raise
                continue  # completed or aborted just now
            age = _seconds_since(upload["Initiated"])
            found.append(Upload(f"s3://{bucket}/{upload['Key']}", upload["UploadId"], size, age))
    return found


def abort(upload: Upload) -> None:
    """`surveyed.abort`."""
    bucket, key = _split(upload.uri)
    with contextlib.suppress(Missing), _translated(upload.uri):
        client().abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload.upload_id)


def client() -> Any:
    """The process's S3 client, safe to share between threads."""
    return _client(os.getpid())  # a forked worker must not share its parent's sockets


@functools.cache
def _client(_pid: int) -> Any:
    own_endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    try:
        config = Config(
            retries={"mode": "standard", "total_max_attempts": int(os.environ.get("AWS_MAX_ATTEMPTS", "4"))},
            connect_timeout=5,
            read_timeout=60,
            max_pool_connections=32,
            tcp_keepalive=True,
            s3={"addressing_style": "path" if own_endpoint else "auto"},  # own servers rarely have a name a bucket
            # Ceph and other older servers refuse checksums in trailers; payloads are signed, which covers the bytes.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return boto3.session.Session().client("s3", config=config)
    except ValueError as error:
        raise StoreError(f"the AWS_* environment ({error}): mend AWS_ENDPOINT_URL or AWS_MAX_ATTEMPTS") from error


def _put(bucket: str, key: str, body: bytes, condition: dict[str, str]) -> str:
    for attempt in range(4):
        try:
            return str(client().put_object(Bucket=bucket, Key=key, Body=body, **condition)["ETag"])
        except ClientError as error:
            # AWS: two conditional writes met and neither may have won.
            if error.response["Error"].get("Code") != "ConditionalRequestConflict" or attempt == 3:
                raise
        time.sleep(0.1 * 2**attempt)
    raise AssertionError


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise RecipeError(f"{uri}: names no bucket; write s3://bucket/prefix")
    return bucket, key.rstrip("/")


def _seconds_since(moment: datetime.datetime) -> float:
    return (datetime.datetime.now(datetime.UTC) - moment).total_seconds()


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


@contextlib.contextmanager
def _translated(uri: str) -> Iterator[None]:
    """Foreign errors become ours, with what to do."""
    try:
        yield
    except ClientError as error:
        _refused(uri, error)
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise StoreError(f"{uri}: no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY ({error})") from error
    except (UnreachableError, HTTPClientError, IncompleteReadError, RetriesExceededError) as error:
        raise OutsideError(
            f"{uri}: no answer from {_endpoint()} ({error}): check AWS_ENDPOINT_URL and that the server runs, run again"
        ) from error
    except BotoCoreError as error:
        raise StoreError(f"{uri}: {error}: mend the URI or the AWS_* environment") from error
    except OSError as error:
        explain(error, error.filename or uri)


def _refused(uri: str, error: ClientError) -> NoReturn:
    bucket, _ = _split(uri)
    code, status = error.response["Error"].get("Code", ""), _status(error)
    if code == "NoSuchBucket":
        raise StoreError(f"{uri}: no bucket {bucket!r} at {_endpoint()}: create it, or mend --run-uri") from error
    if status == 404:
        raise Missing(uri) from error
    if status == 412 or code == "ConditionalRequestConflict":
        raise Exists(uri) from error
    if status in (401, 403) or code in ("InvalidAccessKeyId", "ExpiredToken", "InvalidToken"):
        raise StoreError(
            f"{uri}: {_endpoint()} refuses access to bucket {bucket!r} ({code}): check AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, and what they may do there"
        ) from error
    if status >= 500 or status in (408, 429):
        raise OutsideError(f"{uri}: {_endpoint()} fails ({status} {code}): run again when it is well") from error
    raise StoreError(f"{uri}: {_endpoint()} refuses ({error}): mend the URI or the AWS_* environment") from error


def _endpoint() -> str:
    return str(client().meta.endpoint_url)
