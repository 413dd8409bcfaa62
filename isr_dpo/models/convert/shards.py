"""Files of weights, read and written a part at a time.

`.bin` files are read with torch's `weights_only`, so that nothing in them runs, and mapped: what they take of memory is
the page cache's, a shard's size at most. Those of before torch 1.6 cannot be mapped and are read whole.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from isr_dpo.errors import ModelError
from isr_dpo.models.folder import safetensors_header

if TYPE_CHECKING:
    import torch

BYTES: Mapping[str, int] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}
"""Bytes of a value, by safetensors' name of its dtype."""
_TORCH = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"} | {
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
}
_ZIP = b"PK\x03\x04"
_STEP = 16 << 20
"""Bytes read at a time."""

Chunks = Callable[[str], Iterator["bytes | memoryview"]]
"""Name of a tensor -> its values, a part after the other."""


class Entry(NamedTuple):
    """A tensor to write: `source`'s values under the name `target`, `more_rows` rows of zeros after them."""

    source: str
    target: str
    dtype: str
    shape: tuple[int, ...]
    """With the rows that are added."""
    more_rows: int
    bytes: int


def header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of each tensor in a file of weights.

    Raises:
        ModelError: cut off; anything but tensors in it; a dtype that is not converted.
    """
    if path.suffix == ".safetensors":
        entries = safetensors_header(path)
        found = {name: (str(entry["dtype"]), tuple(entry["shape"])) for name, entry in entries.items()}
    else:
        tensors = _load(path)
        found = {n: (_TORCH.get(str(t.dtype)[6:], str(t.dtype)), tuple(t.shape)) for n, t in tensors.items()}
    for name, (dtype, _) in found.items():
        if dtype not in BYTES:
            raise ModelError(f"{path}: {name} is of dtype {dtype}; converted: {', '.join(BYTES)}")
    if path.suffix == ".safetensors":
        for name, (dtype, shape) in found.items():
            start, end = entries[name]["data_offsets"]
            if end - start != math.prod(shape) * BYTES[dtype]:
                raise ModelError(f"{path}: gives {name} {end - start} bytes, which is not what {dtype} {shape} takes")
    return found


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Chunks]:
    """Gives the values of each tensor in a file of weights, by name. Raises ModelError: the file went away."""
    if path.suffix != ".safetensors":
        tensors = _load(path)
        yield lambda name: _slices(tensors[name])
        return
    places = {name: entry["data_offsets"] for name, entry in safetensors_header(path).items()}
    with path.open("rb") as file:
        data = path.stat().st_size - max(end for _, end in places.values())
        yield lambda name: _read(file, data + places[name][0], data + places[name][1])


def write(path: Path, entries: Sequence[Entry], read: Chunks, progress: Callable[[int], None]) -> None:
    """Writes a safetensors file, on the disk when this returns. `progress` is told of bytes. Raises ModelError: a
    source has changed.

    The library's own writer holds a second copy of all the tensors in memory.
    """
    with path.open("wb") as file:
        file.write(_header(entries))
        for entry in entries:
            rest = entry.bytes
            for chunk in read(entry.source):
                progress(len(chunk))
                rest -= file.write(chunk)
            if rest != entry.bytes // entry.shape[0] * entry.more_rows:
                raise ModelError(f"{path.name}: {entry.source} changed while it was read; run again")
            progress(file.write(bytes(rest)))
        file.flush()
        os.fsync(file.fileno())


def _read(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    file.seek(start)
    while start < end and (chunk := file.read(min(_STEP, end - start))):
        yield chunk
        start += len(chunk)


def _slices(tensor: torch.Tensor) -> Iterator[memoryview]:
    import torch

    values = memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for start in range(0, len(values), _STEP):
        yield values[start : start + _STEP]


def _header(entries: Sequence[Entry]) -> bytes:
    """Of safetensors: 8 bytes of its length, then JSON, filled up with spaces so that values are aligned."""
    tree: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        end = offset + entry.bytes
        tree[entry.target] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(tree, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _load(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.bin` file. Nothing in it is run: `weights_only`."""
    import torch

    with path.open("rb") as file:
        is_zip = file.read(4) == _ZIP
    if path.stat().st_size == 0 or (is_zip and not zipfile.is_zipfile(path)):
        raise ModelError(f"{path}: cut off ({path.stat().st_size} bytes): not written or copied to its end")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        reason = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), "")
        raise ModelError(
            f"{path}: holds something else than tensors, such as code, or is damaged; none of it was run. {reason}"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ModelError(f"{path}: cut off or damaged: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ModelError(f"{path}: not a table of tensors by name")
    return {str(name): value for name, value in found.items()}
