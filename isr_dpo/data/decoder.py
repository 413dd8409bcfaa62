"""Decoding in a process of its own: FFmpeg may crash or hang on hostile bytes, and then one clip is lost, by name, not
the step. A plain child process rather than multiprocessing: it imports no main module of the caller, and forks nothing.

Protocol: a JSON line in, `{"path", "frames"}`; a JSON line out, either `{"reason"}` or
`{"shape", "indices", "clip_frames"}` followed by the pixels' bytes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from isr_dpo.data.video import Decoded, Unreadable, decode
from isr_dpo.errors import IsrDpoError
from isr_dpo.orphans import die_with


class Decoder:
    """`decode` in a child process, which is restarted after a crash. One caller at a time."""

    def __init__(self, *, timeout_seconds: float = 600.0, module: str = "isr_dpo.data.decoder") -> None:
        self._timeout_seconds = timeout_seconds
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None

    def decode(self, path: str | Path, *, frames: int) -> Decoded:
        """As `video.decode`.

        Raises:
            Unreadable: also where the decoder crashed, or did not end in time.
        """
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()
        timer = threading.Timer(self._timeout_seconds, _kill, (process, late))
        timer.start()
        try:
            process.stdin.write(json.dumps({"path": str(path), "frames": frames}).encode() + b"\n")
            process.stdin.flush()
            header = json.loads(process.stdout.readline() or b"null")
            size = int(np.prod(header["shape"])) if header and "shape" in header else 0
            pixels = process.stdout.read(size)
        except BrokenPipeError:
            header, size, pixels = None, 0, b""
        finally:
            timer.cancel()
        if header is None or len(pixels) < size:
            raise Unreadable(self._obituary(process, late=late.is_set()))
        if "reason" in header:
            raise Unreadable(header["reason"])
        array = np.frombuffer(pixels, np.uint8).reshape(header["shape"])
        return Decoded(array, tuple(header["indices"]), header["clip_frames"])

    def close(self) -> None:
        """Ends the child."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        with tempfile.TemporaryFile() as complaints:
            process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", self._module, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                env=environment,
            )
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                process.kill()
                process.communicate()
                complaints.seek(0)
                last = complaints.read().decode(errors="replace").strip().rpartition("\n")[2]
                raise IsrDpoError(f"the video decoder does not start: {last}; pip install 'isr-dpo[train]' provides it")
        return process

    def _obituary(self, process: subprocess.Popen[bytes], *, late: bool) -> str:
        try:
            process.wait(timeout=10)  # it closed its output: it is on its way out
        except subprocess.TimeoutExpired:
            process.kill()
        self.close()
        if late:
            return f"the decoder did not end within {self._timeout_seconds:g} s"
        code = process.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"the decoder crashed ({how})"


def _kill(process: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    process.kill()


def serve() -> None:
    """The child: answers requests until its parent is gone."""
    import av  # noqa: F401 - here, so that what is missing is said before the first request
    import decord  # noqa: F401

    die_with(int(sys.argv[1]))  # also where a clip hangs it, and it reads no more requests
    out = os.fdopen(os.dup(1), "wb")
    out.write(b"ready\n")
    out.flush()
    quiet = os.open(os.devnull, os.O_WRONLY)  # FFmpeg writes to both
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    for line in sys.stdin.buffer:
        request: dict[str, Any] = json.loads(line)
        try:
            decoded = decode(request["path"], frames=request["frames"])
        except Unreadable as error:
            out.write(json.dumps({"reason": str(error)}).encode() + b"\n")
        else:
            header = {"shape": decoded.frames.shape, "indices": decoded.indices, "clip_frames": decoded.clip_frames}
            out.write(json.dumps(header).encode() + b"\n")
            out.write(np.ascontiguousarray(decoded.frames).data)
        out.flush()


if __name__ == "__main__":
    serve()
