"""One core, many callers: a scripted core stands for vLLM's; `make test-vllm` runs the real one."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from isr_dpo.engines.vllm_loop import Loop, Request
from isr_dpo.errors import ModelError


@dataclass
class Output:
    request_id: str
    outputs: list[str]
    finished: bool


class Core:
    """Finishes its newest request at every third step, from the time that it was given `at_least` in all, and fails
    where that is `broken`."""

    def __init__(self, *, at_least: int = 0) -> None:
        self.at_least = at_least
        self.waiting: list[tuple[str, str]] = []
        self.steps = self.added = self.most = 0
        self._used = threading.Lock()

    @property
    def llm_engine(self) -> Core:
        return self

    def enqueue(self, prompts: list[Any], params: list[Any], *, use_tqdm: bool) -> list[str]:
        with self._alone():
            assert len(prompts) == len(params)
            names = [str(self.added + number) for number in range(len(prompts))]
            self.added += len(prompts)
            self.waiting += [(name, prompt["text"]) for name, prompt in zip(names, prompts, strict=True)]
            self.most = max(self.most, len(self.waiting))
            return [f"{name}-0a1b" for name in names]

    def step(self) -> list[Output]:
        with self._alone():
            time.sleep(0.001)
            self.steps += 1
            name, text = self.waiting[-1]
            if text == "broken":
                raise RuntimeError("CUDA error:\n  misaligned")
            finished = self.steps % 3 == 0 and self.added >= self.at_least
            if finished:
                del self.waiting[-1]
            return [Output(name, [text.upper()], finished)]

    def _alone(self) -> threading.Lock:
        assert not self._used.locked(), "two threads in the core"
        return self._used


def ask(loop: Loop, *texts: str) -> dict[int, str]:
    found: dict[int, str] = {}
    requests = {number: Request({"text": text}, None) for number, text in enumerate(texts)}
    loop.run(requests, lambda key, output: found.update({key: output}))
    return found


def test_each_request_gets_its_output() -> None:
    told: list[None] = []
    loop = Loop(Core(), idle=lambda: told.append(None))
    assert ask(loop, "a", "b", "c") == {0: "A", 1: "B", 2: "C"}
    assert ask(loop) == {}
    assert ask(loop, "d") == {0: "D"}
    assert len(told) == 2


def test_calls_of_many_threads_are_in_the_core_together_and_one_thread_at_a_time_is() -> None:
    core, told = Core(), list[int]()
    loop = Loop(core, idle=lambda: told.append(len(core.waiting)))
    texts = [[f"t{call}-{number}" for number in range(1 + call % 4)] for call in range(60)]
    with ThreadPoolExecutor(12) as threads:
        found = list(threads.map(lambda asked: ask(loop, *asked), texts))
    assert found == [{number: text.upper() for number, text in enumerate(asked)} for asked in texts]
    assert core.most > 12
    assert set(told) == {0}


def test_a_short_call_is_done_before_a_longer_one_that_leads() -> None:
    core, ended = Core(at_least=41), list[str]()
    loop = Loop(core)

    def call(name: str, count: int) -> None:
        ask(loop, *[name] * count)
        ended.append(name)

    with ThreadPoolExecutor(2) as threads:
        threads.submit(call, "long", 40)
        while core.added < 40:
            time.sleep(0.001)
        threads.submit(call, "short", 1)
    assert ended == ["short", "long"]


@pytest.mark.parametrize("threads", [1, 6])
def test_a_core_that_fails_ends_every_call_with_the_reason(threads: int) -> None:
    core = Core()
    loop = Loop(core)
    with ThreadPoolExecutor(threads) as pool:
        calls = [pool.submit(ask, loop, "a", "broken") for _ in range(threads)]
        for call in calls:
            with pytest.raises(ModelError, match="vLLM while it runs: CUDA error: misaligned"):
                call.result(timeout=120)


def test_whatever_the_leader_falls_over_no_other_call_waits_for_ever() -> None:
    core, leads = Core(), threading.Event()
    loop = Loop(core)

    def falls(key: int, output: str) -> None:
        leads.set()
        until = time.monotonic() + 60
        while len(loop._calls) < 2 and time.monotonic() < until:  # till the other one waits
            time.sleep(0.001)
        raise KeyError(key)

    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(loop.run, {0: Request({"text": "a"}, None)}, falls)
        assert leads.wait(timeout=20)
        other = pool.submit(ask, loop, "b")
        with pytest.raises(KeyError):
            leader.result(timeout=20)
        try:
            with pytest.raises(ModelError, match="KeyError"):
                other.result(timeout=20)
        finally:
            for call in loop._calls:  # or the pool waits with them
                call.error = ModelError("left behind")
                call.woken.set()
