"""How steps work with the recipe's engines: opened where a part is left to do, as many as the pod has devices."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

from isr_dpo import engines, manifest
from isr_dpo.config import Recipe
from isr_dpo.digests import code_version
from isr_dpo.engines import Engine, Progress, pool
from isr_dpo.engines.pool import Worker
from isr_dpo.manifest import Manifest, content_digest
from isr_dpo.outputs import Output
from isr_dpo.parts import WHOLE, Share, work_in_parts
from isr_dpo.records import Row
from isr_dpo.steps.common import Inputs, StepResult, frame_store, sealed

ENGINE = "engine.json"
"""Of an output: which kind of engine made its rows, and whether it makes the same bytes again."""
T = TypeVar("T")
R = TypeVar("R", bound=Row)
S = TypeVar("S", bound=Row, covariant=True)
U = TypeVar("U", contravariant=True)


class Stage(Protocol[U, S]):
    """One of the package's stages with its settings: a row an item, in order. A function of a module, or a partial of
    one, so that it can travel."""

    def __call__(self, items: Sequence[U], engine: Engine, /, *, progress: Progress) -> Sequence[S]: ...


class _Made(NamedTuple, Generic[R]):
    """Of a part: its rows, and whether the engine makes the same bytes again."""

    rows: Sequence[R]
    deterministic: bool


class Engines:
    """Workers with the recipe's engine on the policy among `inputs`, with the run's frames. Leaving the context ends
    them."""

    def __init__(self, recipe: Recipe, inputs: Inputs, run_uri: str) -> None:
        self._recipe, self._inputs, self._run_uri = recipe, inputs, run_uri
        self._opened: Sequence[Worker] = ()
        self._open = ExitStack()
        self._noting = threading.Lock()  # workers end their parts at the same time

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    def __call__(self) -> Sequence[Worker]:
        """Opened on the first call."""
        if not self._opened:
            settings, model = self._recipe.engine, self._recipe.model
            folder = manifest.files(self._inputs["policy"])
            frames = frame_store(self._run_uri, self._inputs["dataset"])
            opening = functools.partial(engines.open_engine, settings, model, folder, frames.read)
            self._opened = self._open.enter_context(pool.opened(opening, pool.devices(settings, model)))
        return self._opened

    def work(
        self,
        items: Sequence[T],
        out: Output,
        *,
        row_type: type[R],
        stage: Stage[T, R],
        progress: Progress,
        prefix: str = "part",
        share: Share = WHOLE,
    ) -> list[R]:
        """`work_in_parts` by a stage, noting in `out` what kind of engine it was."""

        def work(chunk: Sequence[T], worker: Worker, progress: Progress) -> Sequence[R]:
            made = worker.do(functools.partial(_run, stage, chunk), progress)
            self._note(out, deterministic=made.deterministic)
            return made.rows

        return work_in_parts(
            items,
            out,
            rows_per_part=self._recipe.engine.rows_per_part,
            row_type=row_type,
            workers=self,
            work=work,
            progress=progress,
            prefix=prefix,
            share=share,
        )

    def _note(self, out: Output, *, deterministic: bool) -> None:
        """Before the first part is written. Whoever seals `out` may open no engine."""
        with self._noting:
            if ENGINE not in out.done or (deterministic_so_far(out) and not deterministic):
                tree = {"kind": self._recipe.engine.kind, "deterministic": deterministic}
                out.write(ENGINE, (json.dumps(tree) + "\n").encode())


def _run(stage: Stage[T, R], chunk: Sequence[T], engine: Engine, progress: Progress) -> _Made[R]:
    return _Made(stage(chunk, engine, progress=progress), engine.deterministic)


def deterministic_so_far(out: Output) -> bool:
    """Whether every engine that worked for `out` makes the same bytes again."""
    return ENGINE not in out.done or bool(json.loads(out.read(ENGINE))["deterministic"])


def closed(out: Output, metrics: dict[str, float], *, rows: int, share: Share = WHOLE) -> StepResult:
    """Completes an output of engines; of a share, tells what stands of it instead."""
    if share == WHOLE:
        return sealed(out, metrics, rows=rows, deterministic=deterministic_so_far(out))
    return StepResult(_unsealed(out, rows), {"rows": rows}, reused=False)


def _unsealed(out: Output, rows: int) -> Manifest:
    """A manifest without files, which travels and is not stored."""
    return Manifest(
        **vars(out.origin),
        uri=out.uri,
        code_version=code_version(),
        deterministic=deterministic_so_far(out),
        rows=rows,
        files={},
        digest=content_digest(out.origin.kind, {}),
    )
