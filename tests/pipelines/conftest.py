"""Compiling is quick here too: KFP asks for the name of its caller by `inspect.stack()`, which looks through every
module that is loaded for the source of every frame. In a process that has loaded torch and MLflow these are minutes."""

import inspect
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def _names_of_callers() -> Iterator[None]:
    def stack(context: int = 1) -> list[inspect.FrameInfo]:
        found, frame = [], sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            found.append(inspect.FrameInfo(frame, code.co_filename, frame.f_lineno, code.co_name, None, None))
            frame = frame.f_back
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "stack", stack)
        yield
