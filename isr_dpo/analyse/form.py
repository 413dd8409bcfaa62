"""The JSON form of a result: its dataclass, key by key, so that the file says what it holds."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from isr_dpo.errors import DataError
from isr_dpo.stores import write_bytes

T = TypeVar("T")


def to_json(result: Any) -> bytes:
    """The JSON of a result of this package; equal results give equal bytes."""
    return TypeAdapter(type(result)).dump_json(result, indent=1) + b"\n"


def from_json(kind: type[T], content: bytes, *, where: str) -> T:
    """The result of type `kind` that `to_json` wrote; `where` names the file in messages.

    Raises:
        DataError: the content is not such a result, perhaps another version's.
    """
    try:
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{where}: not a {kind.__name__} of this version: {key}: {first['msg']}; analyse again"
        ) from error


def save(result: Any, uri: str) -> None:
    """Stores the JSON of a result at `uri`, a path or s3://, whole or not at all. Raises StoreError."""
    write_bytes(uri, to_json(result))
