"""A run's files without a model: what the report reads, with figures and texts made up here."""

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from isr_dpo import layout, times
from isr_dpo.analyse import claims, form, win_rate
from isr_dpo.analyse.agreement import Agreement, run_agreement, same_pairs
from isr_dpo.analyse.asking import Bill
from isr_dpo.analyse.runs import GraderInfo
from isr_dpo.analyse.tables import agreement
from isr_dpo.annotate.choices import Choice
from isr_dpo.annotate.sheet import rows_digest
from isr_dpo.config import Recipe
from isr_dpo.data.frames import FrameWriter, encode
from isr_dpo.evaluate.account import Account, Amount, Ceilings
from isr_dpo.evaluate.caption import CaptionProtocol
from isr_dpo.evaluate.grades import measure
from isr_dpo.manifest import Origin
from isr_dpo.outputs import Output, begin
from isr_dpo.preferences import preferences
from isr_dpo.records import Context, Grade, Judged, Prediction, Preference, Question, TestRow, to_jsonl
from isr_dpo.report.data import Page, gather
from isr_dpo.report.failure import Failure
from isr_dpo.report.reading import KeptRun
from isr_dpo.stores import join

MADE = "2025-01-01 12:00 UTC"
HOSTILE = "<script>alert(1)</script></style></p>\"'<img src=x onerror=alert(2)> {{ 7*7 }}"


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "smoke",
            "iterations": 3,
            "model": {"start": "builtin:world", "registered_name": "smoke"},
            "data": {"train": "train.jsonl", "sets": {"dev": "dev.qa.jsonl", "test": "test.qa.jsonl"}},
            **changes,
        }
    )


def page(run_uri: str, *, failure: Failure | None = None, **changes: Any) -> Page:
    """The report's page over one run."""
    made_by = recipe(**changes)
    return gather([KeptRun(run_uri, made_by, made_by.name)], made=MADE, failure=failure)


def finish(uri: str, files: dict[str, bytes]) -> None:
    """A complete output of these files."""
    output = begin(uri, Origin("test", "test", {}, "", ""))
    assert isinstance(output, Output)
    for name, content in files.items():
        output.write(name, content)
    output.seal(rows=1, deterministic=True)


def metrics(**values: float) -> dict[str, bytes]:
    return {"metrics.json": json.dumps(values).encode()}


def write(run_uri: str, *, text: str = "a red square moves left", rounds: int = 2, evaluated: int = 3) -> None:
    """A run with `rounds` finished rounds after the seed DPO and `evaluated` graded policies; `text` stands in every
    text that a model wrote."""
    write_dataset(run_uri, text)
    write_frames(run_uri)
    write_training(run_uri, 0)
    for index in range(1, rounds + 1):
        write_round(run_uri, index, text)
    for index in range(1, evaluated + 1):
        write_evaluation(run_uri, index, text=text)
    write_times(run_uri)


def write_dataset(run_uri: str, text: str, *, asked: str = "where does it go") -> None:
    questions = [judged_row(number, 1, text, "") for number in range(40)]
    train = [Question(id=row.id, video=row.video, prompt=row.prompt) for row in questions]
    seed = [Preference(id="s", video="clip-000", prompt="?", chosen="it goes left", rejected="left it goes then")]
    tested = to_jsonl([question_row(number, text, asked) for number in range(40)])
    files = {"train-00000.jsonl": to_jsonl(train), "seed-00000.jsonl": to_jsonl(seed)}
    sets = {f"set-{name}.jsonl": tested for name in ("dev", "test")}
    figures = metrics(train_rows=40, seed_rows=40, videos=10, unreadable_videos=0)
    finish(layout.dataset(run_uri), {**files, **sets, **figures})


def question_row(number: int, text: str, asked: str = "where does it go") -> TestRow:
    turns = [{"from": "human", "value": f"<video>\n{asked}, {number}?"}, {"from": "gpt", "value": f"{text} home"}]
    video = f"clip-{number % 10:03d}"
    return TestRow.model_validate({"id": f"q{number}", "video": video, "conversations": turns, "caption": text})


def write_times(run_uri: str) -> None:
    figures = {"rows": 40.0, "pairs": 32.0, "dev/rows": 40.0}
    for number, (step, index) in enumerate([("train", 0), ("answer", 1), ("generate", 1), ("judge", 1), ("train", 1)]):
        times.record(run_uri, step, index, started=1.7e9 + number, seconds=20.0 + 5 * number, metrics=figures)
    times.record(run_uri, "evaluate", 1, started=1.8e9, seconds=3.0, ended="OutsideError")


def write_frames(run_uri: str, *, videos: int = 10, side: int = 32) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writer = FrameWriter(Path(folder), number=0)
        for video in range(videos):
            writer.add(f"clip-{video:03d}", encode(_clip(video, side), sha256="0" * 64))
        writer.finish()
        finish(layout.frames(run_uri), {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())})


def _clip(video: int, side: int) -> np.ndarray:
    draw = random.Random(video)
    frames = np.full((8, side, side, 3), 232, np.uint8)
    size = side // 4
    for _ in range(2):
        colour, y, step = [draw.randrange(40, 220) for _ in range(3)], draw.randrange(side - size), draw.choice((-1, 1))
        for number, frame in enumerate(frames):
            x = (number if step > 0 else 7 - number) * (side - size) // 7
            frame[y : y + size, x : x + size] = colour
    return frames


def write_training(run_uri: str, index: int) -> None:
    draw = random.Random(index)
    steps = 30 if index == 0 else 12
    log = [
        {
            "step": i,
            "loss": 0.69 - 0.3 * i / steps + draw.uniform(-0.04, 0.04),
            "reward_accuracy": 0.5 + 0.4 * i / steps,
            "margin": 0.9 * i / steps + draw.uniform(-0.1, 0.1),
        }
        for i in range(steps)
    ]
    figures = metrics(
        pairs=300,
        steps=steps,
        reward_accuracy=0.78 + 0.04 * index,
        margin=0.8,
        loss_first=0.69,
        loss_last=0.4,
        **({"update_kept": 0.43, "pairs_per_second": 12.3456, "mfu": 0.52, "floor_ratio": 1.92} if index else {}),
    )
    finish(layout.round_output(run_uri, index, "training"), {**figures, "log.jsonl": to_jsonl(log)})


def write_round(run_uri: str, index: int, text: str) -> None:
    contexts = [
        Context(
            video=f"clip-{v:03d}",
            context=f"{text} on a plain ground, in round {index}, followed by a {'blue disc' if index > 1 else 'disc'}",
        )
        for v in range(10)
    ]
    finish(
        layout.round_output(run_uri, index, "contexts"), {"part-00000.jsonl": to_jsonl(contexts), **metrics(rows=10)}
    )
    judged = [judged_row(number, index, text, contexts[number % 10].context) for number in range(40)]
    drops = {f"dropped_{r}": sum(row.outcome == r for row in judged) for r in ("identical", "empty", "tie", "unparsed")}
    figures = metrics(
        rows=40,
        pairs=sum(row.outcome == "preferred" for row in judged),
        **drops,
        dropped_inconsistent=0,
        order_consistency=0.7 + 0.1 * index,
        tie_rate=drops["dropped_tie"] / 40,
        label_mass=0.9,
        first_position_rate=0.56,
        chosen_words=9.0 + index,
        rejected_words=8.5,
        response_words=9,
    )
    finish(
        layout.round_output(run_uri, index, "preferences"),
        {"judged-00000.jsonl": to_jsonl(judged), "part-00000.jsonl": to_jsonl(preferences(judged)), **figures},
    )
    write_training(run_uri, index)


def judged_row(number: int, index: int, text: str, context: str) -> Judged:
    row = {
        "id": f"clip-{number % 10:03d}-q{number}",
        "video": f"clip-{number % 10:03d}",
        "prompt": f"what does {text} do after the disc, in round {index}?",
        "responses": (f"{text} .", f"{text} and then turns round ."),
        "context": context,
    }
    share = 0.03 + 0.94 * (number % 20) / 19
    outcome = {3: "identical", 7: "empty", 11: "tie", 15: "unparsed"}.get(number % 20, "preferred")
    if outcome == "identical":
        row["responses"] = (text, text)
    if outcome == "empty":
        row["responses"] = (text, "  ")
    if outcome in ("identical", "empty"):
        return Judged(**row, outcome=outcome)
    if outcome == "tie":
        return Judged(**row, outcome=outcome, probabilities=((0.7, 0.2), (0.2, 0.7)), rationales=("", ""))
    if outcome == "unparsed":
        return Judged(**row, outcome=outcome, probabilities=((0.01, 0.01), (0.0, 0.0)), rationales=("", ""))
    probabilities = ((0.9 * share, 0.9 * (1 - share)), (0.8 * share, 0.8 * (1 - share)))
    winner = 0 if share > 0.5 else 1
    return Judged(**row, outcome=outcome, probabilities=probabilities, winner=winner, rationales=(text, text))


def right(number: int, index: int) -> bool | None:
    """Whether policy `index` answers a question rightly; None: unscored."""
    if number == 39:
        return None
    return number < 18 + 3 * index and not (number == 5 and index == 3)


def write_evaluation(
    run_uri: str,
    index: int,
    *,
    grader: str = "rule-based",
    model: str | None = None,
    text: str = "a red square",
    sets: tuple[str, ...] = ("dev", "test"),
) -> None:
    """Answers and grades; policy-02's on the first set alone."""
    for name in sets if index != 2 else sets[:1]:
        grades, answers = zip(*(_answered(number, index, text, model) for number in range(40)), strict=True)
        finish(join(layout.answers(run_uri, index), name), {"part-00000.jsonl": to_jsonl(answers)})
        figures = json.dumps(measure(grades, protocol=CaptionProtocol())).encode()
        files = {"metrics.json": figures, "part-00000.jsonl": to_jsonl(grades)}
        where = layout.graded(run_uri, index, "caption", name)
        finish(where, {**files, "protocol.json": protocol(grader, model)})


def protocol(grader: str, model: str | None) -> bytes:
    tree = {"protocol": "caption", "grader": grader, "model": model, "prompt_digest": None}
    return json.dumps({**tree, "served_models": [], "reading": "strict"}).encode()


def _answered(number: int, index: int, text: str, model: str | None) -> tuple[Grade, Prediction]:
    row, correct = question_row(number, text), right(number, index)
    said = f"{text} {'home' if correct else 'away'}, says policy {index}"
    grade = Grade(
        id=row.id,
        video=row.video,
        score=None if correct is None else 5.0 if correct else 1.0,
        correct=correct,
        words=len(said.split()),
        status="unscored" if correct is None else "scored",
        reason="unreadable" if correct is None else None,
        reply=f"Explanation: {text}\nScore: {5 if correct else 1}",
        bought=model is not None,
        cost_usd=0.01 if model is not None else 0.0,
        prompt_tokens=100 if model is not None else 0,
        completion_tokens=10 if model is not None else 0,
    )
    outcome = {"status": "success", "message": said}
    answer = Prediction.model_validate(
        {
            "id": row.id,
            "modal_path": row.video,
            "query": row.question,
            "answer": row.answer,
            "model_prediction": outcome,
        }
    )
    return grade, answer


def write_analyses(run_uri: str, *, text: str = "it goes left") -> None:
    """A win rate and the claims of two policies."""
    who = GraderInfo("gpt-4o", "gpt-4o", "win-rate", "0" * 64)
    sides = [win_rate.Side(f"{name}, policy-03", name, "elsewhere", 3, "none") for name in ("smoke", "other")]
    rows = [
        win_rate.Pair("dev", f"q{n}", f"clip-{n:03d}", "where?", "left", text, "right", outcome, "", ())
        for n, outcome in enumerate(["first"] * 6 + ["second"] * 3 + ["tie"] * 2 + ["unscored"])
    ]
    found = win_rate.WinRate(*sides, who, None, 0, Bill(24, 20, 0.5), {}, (win_rate.measure(rows, "dev"),), tuple(rows))
    form.save(found, layout.analysis(run_uri, "win-rate-other"))
    answer = f"{text}. It is made of gold."
    examined = [
        claims.Examined(policy, f"q{n}", f"clip-{n:03d}", f"where, {n}?", "left", "a square", answer, stated)
        for policy, stated in [(1, claims.located(answer, [])), (3, _stated(answer, text))]
        for n in range(4)
    ]
    unread = claims.Examined(3, "q9", "clip-009", "where, 9?", "left", "a square", answer, None, "prose")
    examined.append(unread)
    made = claims.Claims(
        "smoke", run_uri, "none", "dev", who, None, 0, Bill(8, 8, 0.1), {}, claims.measure(examined), tuple(examined)
    )
    form.save(made, layout.analysis(run_uri, "claims-dev"))


def write_agreement(run_uri: str) -> None:
    """A person's labels of round 2, and its pairs judged again: without context the judge takes the second response of
    every other pair, with another video's description it is undecided on all."""
    judged = [judged_row(number, 2, "a disc", "") for number in range(40)]
    labels = [
        Choice(
            id=row.id,
            video=row.video,
            round=2,
            annotator="anna",
            shown_first=0,
            choice=0,
            outcome="preferred",
            seconds=3.0,
            rows_digest=rows_digest(judged),
        )
        for row in judged[:20]
    ]
    own = {"run": "smoke", "uri": run_uri, "round_index": 2, "context": "retrospective", "made_from": {}}
    found = run_agreement(judged, {"anna": labels}, **own)
    other = {"outcome": "preferred", "winner": 1, "probabilities": ((0.2, 0.7), (0.1, 0.8))}
    same = same_pairs(
        found,
        without=[row.model_copy(update=other) if number % 2 else row for number, row in enumerate(judged)],
        with_context=judged,
        shuffled=[row.model_copy(update={"probabilities": ((0.4, 0.4), (0.4, 0.4))}) for row in judged],
        policy=2,
        contexts_of="smoke",
    )
    form.save(Agreement(2, (found,), None, same, agreement()), layout.analysis(run_uri, "agreement-round-02"))


def write_account(run_uri: str) -> None:
    spent = Amount(120, 0.25)
    Account(layout.account(run_uri), Ceilings(None, None)).put("spender-1", spent, spent, closed=True)


def _stated(answer: str, text: str) -> tuple[claims.Claim, ...]:
    start = answer.index("made of gold")
    return claims.Claim(text, 0, len(text), True), claims.Claim("made of gold", start, start + 12, False)
