"""The process of one engine: `python -m isr_dpo.engines.worker PIPE PARENT`, which `pool` starts.

It opens the engine that it is sent, then does jobs, one at a time, and answers each with `("done", result)` or
`("error", pickled exception)`; before that come `("began", None)` at once, `("progress", items)` and `("log", record)`.
It ends with its parent.
"""

from __future__ import annotations

import functools
import logging
import pickle
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

from isr_dpo.errors import IsrDpoError
from isr_dpo.orphans import die_with


def main(pipe: int, parent: int) -> None:
    """Serves until the pipe is closed."""
    die_with(parent)
    connection: Connection[Any, Any] = Connection(pipe)
    tell = _Teller(connection)
    opening = connection.recv_bytes()
    ours = logging.getLogger("isr_dpo")
    ours.addHandler(_Forward(tell))
    ours.setLevel(logging.INFO)
    ours.propagate = False
    engine: Any = None
    while True:
        try:
            job = connection.recv_bytes()
            tell("began", None)
        except (EOFError, BrokenPipeError):
            return
        try:
            engine = engine or pickle.loads(opening)()  # noqa: S301 - our own parent
            kind, value = "done", pickle.loads(job)(engine, functools.partial(tell, "progress"))  # noqa: S301 - as above
        except Exception as error:  # noqa: BLE001 - raised by our parent
            kind, value = "error", _travelling(error)
        tell(kind, value)


def _travelling(error: Exception) -> bytes:
    """The error as its class and text survive the pipe; one that is not ours keeps its traceback as a note."""
    text = "".join(traceback.format_exception(error)).strip()
    if not isinstance(error, IsrDpoError):
        error.add_note(f"in a worker:\n{text}")
    try:
        pickle.loads(pickled := pickle.dumps(error))  # noqa: S301 - our own; some pickle and do not come back
    except Exception:  # noqa: BLE001 - whatever a foreign class does when it is pickled
        return pickle.dumps(RuntimeError(text))
    return pickled


class _Teller:
    """Sends to the parent, a message at a time: engines log from threads of theirs."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection, self._mutex = connection, threading.Lock()

    def __call__(self, kind: str, value: Any, /) -> None:
        with self._mutex:
            self._connection.send((kind, value))


class _Forward(logging.Handler):
    """Sends what the package logs to the parent, which knows where it goes."""

    def __init__(self, tell: _Teller) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self._tell("log", record)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
