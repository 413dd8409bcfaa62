"""Generate and retrospect: seeds by row, contexts by video."""

from __future__ import annotations

from isr_dpo import prompts
from isr_dpo.config import Generate, Retrospect
from isr_dpo.engines import Text
from isr_dpo.engines.fake import FakeEngine
from isr_dpo.generate import generate
from isr_dpo.generate import metrics as response_metrics
from isr_dpo.records import Question, Responses
from isr_dpo.retrospect import metrics, retrospect, shuffled

ROWS = [Question(id=f"q{i}", video=f"v{i % 3}", prompt=f"what is {i} ?") for i in range(6)]


def draw(rows: list[Question], *, round_index: int = 1, seed: int = 0) -> list[Responses]:
    template = prompts.load("lmm").answer
    return generate(rows, FakeEngine(), template=template, settings=Generate(), seed=seed, round_index=round_index)


def test_a_rows_draws_do_not_depend_on_the_other_rows() -> None:
    assert draw(ROWS)[::-1] == draw(ROWS[::-1])
    assert draw(ROWS)[2:4] == draw(ROWS[2:4])


def test_draws_differ_by_draw_round_and_run_seed() -> None:
    seeds = {s for rows in (draw(ROWS), draw(ROWS, round_index=2), draw(ROWS, seed=1)) for r in rows for s in r.seeds}
    assert len(seeds) == 3 * 6 * 2


def test_response_metrics() -> None:
    rows = [
        Responses(id="a", video="v", prompt="", responses=("x y", "x y"), finish=("stop", "length"), seeds=(0, 1)),
        Responses(id="b", video="v", prompt="", responses=("x", "z z z"), finish=("stop", "stop"), seeds=(0, 1)),
    ]
    assert response_metrics(rows) == {
        "rows": 2,
        "response_words": 2.0,
        "truncated_fraction": 0.25,
        "identical_fraction": 0.5,
        "empty": 0,
        "too_long": 0,
        "refused": 0,
    }


def not_asked(video: str, reason: str) -> type[FakeEngine]:
    """An engine that cannot be asked about `video`."""

    class Picky(FakeEngine):
        def sample(self, requests, progress=lambda _: None):  # type: ignore[no-untyped-def]
            drawn = super().sample(requests, progress)
            pairs = zip(requests, drawn, strict=True)
            return [[Text("", 0, reason)] * len(t) if r.video == video else t for r, t in pairs]

    return Picky


def test_a_row_that_cannot_be_asked_is_counted_and_stops_no_other() -> None:
    engine = not_asked("v1", "too_long")()
    settings = {"template": prompts.load("lmm").answer, "settings": Generate(), "seed": 0, "round_index": 1}
    made = generate(ROWS, engine, **settings)  # type: ignore[arg-type]
    assert [row.responses == ("", "") for row in made] == [row.video == "v1" for row in ROWS]
    assert [row for row in made if row.video != "v1"] == [row for row in draw(ROWS) if row.video != "v1"]
    found = response_metrics(made)
    assert (found["rows"], found["too_long"], found["refused"], found["empty"]) == (6, 2, 0, 0)


def test_a_context_that_cannot_be_refined_stays() -> None:
    engine = not_asked("v1", "refused")()
    everything = {"prompts": prompts.load("lmm"), "settings": Retrospect(), "seed": 0}
    first = retrospect(["v0", "v1"], engine, previous={}, round_index=1, **everything)  # type: ignore[arg-type]
    assert [(row.context == "", row.reason) for row in first] == [(False, None), (True, "refused")]
    again = retrospect(["v0", "v1"], engine, previous={"v0": "a", "v1": "b"}, round_index=2, **everything)  # type: ignore[arg-type]
    assert (again[1].context, again[1].reason) == ("b", "refused")
    assert (metrics(again)["refused"], metrics(again)["too_long"], metrics(again)["empty"]) == (1, 0, 0)


class Echo(FakeEngine):
    """Records the prompts it is given."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def sample(self, requests, progress=lambda _: None):  # type: ignore[no-untyped-def]
        self.prompts += [r.prompt for r in requests]
        return super().sample(requests, progress)


def test_round_1_describes_and_later_rounds_refine_what_they_are_given() -> None:
    engine = Echo()
    everything = {"prompts": prompts.load("lmm"), "settings": Retrospect(), "seed": 0}
    first = retrospect(["v0", "v1"], engine, previous={}, round_index=1, **everything)
    second = retrospect(["v0", "v1"], engine, previous={r.video: r.context for r in first}, round_index=2, **everything)
    assert all(prompts.load("lmm").describe.text == p for p in engine.prompts[:2])
    assert all(r.context in p for r, p in zip(first, engine.prompts[2:], strict=True))
    assert [r.previous for r in second] == [r.context for r in first]
    assert metrics(first)["changed_fraction"] == 0
    assert metrics(second)["changed_fraction"] == sum(r.context != r.previous for r in second) / 2


def test_shuffled_contexts_are_all_anothers() -> None:
    contexts = {f"v{i}": f"c{i}" for i in range(50)}
    moved = shuffled(contexts, seed=0, round_index=1)
    assert sorted(moved.values()) == sorted(contexts.values())
    assert all(moved[v] != contexts[v] for v in contexts)
    assert moved == shuffled(dict(reversed(contexts.items())), seed=0, round_index=1)
    assert moved != shuffled(contexts, seed=0, round_index=2)
