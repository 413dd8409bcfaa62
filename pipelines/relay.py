"""The standard output of a run under `kfp.local`: all of it goes to a log, what the steps say also to the terminal."""

import io
import time
from pathlib import Path

from rich.console import Console

from isr_dpo.progress import MARK


class Relay(io.TextIOBase):
    """A text stream to redirect standard output to. `kfp.local` prints what its steps print, a line at a time."""

    def __init__(self, log: Path, console: Console) -> None:
        self._log = log.open("w", encoding="utf-8", buffering=1)
        self._console = console
        self._started = time.monotonic()
        self._line = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._log.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._show(line.strip())
        return len(text)

    def flush(self) -> None:
        self._log.flush()

    def close(self) -> None:
        self._log.close()
        super().close()

    def _show(self, line: str) -> None:
        if line.startswith(MARK):
            minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
            text = f"{minutes:02d}:{seconds:02d} {line.removeprefix(MARK)}"
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
