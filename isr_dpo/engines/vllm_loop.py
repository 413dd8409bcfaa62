"""vLLM's core, stepped for calls from any number of threads: what they ask runs in the same batches.

One of the calls under way leads: its thread takes up what has arrived, steps the core and hands out what is finished,
until its own call is done; then another leads. So a single call runs in its own thread alone, and the core is never
touched by two.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

from isr_dpo.engines.vllm_start import translated
from isr_dpo.errors import IsrDpoError

Take = Callable[[Any, Any], None]
"""Told of each request's key and vLLM's output of it as it ends, in the leader's thread."""


class Request(NamedTuple):
    """A prompt as vLLM takes it, and its sampling parameters."""

    prompt: Mapping[str, Any]
    params: Any


class Loop:
    """Runs requests on `llm`. `idle` is told whenever nothing is left to do."""

    def __init__(self, llm: Any, idle: Callable[[], None] = lambda: None) -> None:
        self._llm, self._core, self._idle = llm, llm.llm_engine, idle
        self._mutex = threading.Lock()
        self._calls: list[_Call] = []  # under way, in the order of their arrival
        self._arrived: list[_Call] = []  # those of them that the core does not know yet
        self._leader: _Call | None = None
        self._running: dict[str, tuple[_Call, Hashable]] = {}  # by the core's name for a request

    def run(self, requests: Mapping[Any, Request], take: Take) -> None:
        """Runs all of `requests`; `take` gets each one's key and output.

        Raises:
            ModelError: vLLM refuses one of them or fails; all calls under way end with it.
        """
        if not requests:
            return
        call = _Call(requests, take)
        with self._mutex:
            self._calls.append(call)
            self._arrived.append(call)
            self._leader = self._leader or call
            leads = self._leader is call
        if not leads:
            call.woken.wait()
        if call.left and call.error is None:
            self._lead(call)
        if call.error is not None:
            raise call.error

    def _lead(self, own: _Call) -> None:
        try:
            while own.left:
                self._take_up()
                self._step()
        except (RuntimeError, ValueError) as error:
            self._fail(translated(error, "while it runs"), error)
        except BaseException as error:  # the others would wait for ever
            self._fail(translated(error, f"while it runs ({type(error).__name__})"), error)
            raise
        finally:
            with self._mutex:
                self._leader = next(iter(self._calls), None)
                if self._leader is not None:
                    self._leader.woken.set()
        if self._leader is None:
            self._idle()

    def _take_up(self) -> None:
        with self._mutex:
            arrived, self._arrived = self._arrived, []
        for call in arrived:
            prompts, params = zip(*call.requests.values(), strict=True)
            names = self._llm.enqueue(list(prompts), list(params), use_tqdm=False)
            for name, key in zip(names, call.requests, strict=True):
                self._running[name.partition("-")[0]] = call, key  # "17-0a1b2c3d"

    def _step(self) -> None:
        for output in self._core.step():
            if output.finished:
                call, key = self._running.pop(output.request_id)
                call.take(key, output.outputs[0])
                call.left -= 1
                if not call.left:
                    self._end(call)

    def _end(self, call: _Call) -> None:
        with self._mutex:
            self._calls.remove(call)
        call.woken.set()

    def _fail(self, error: IsrDpoError, cause: BaseException) -> None:
        error.__cause__ = cause
        with self._mutex:
            failed, self._calls, self._arrived = self._calls, [], []
        self._running.clear()
        for call in failed:
            call.error = error
            call.woken.set()


class _Call:
    """Requests of one thread."""

    def __init__(self, requests: Mapping[Any, Request], take: Take) -> None:
        self.requests, self.take = requests, take
        self.left = len(requests)
        self.error: IsrDpoError | None = None
        self.woken = threading.Event()
        """Set when the call is done, has failed or is to lead."""
