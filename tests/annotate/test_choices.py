"""The draw of rows, and the file that choices are kept in."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from isr_dpo import layout
from isr_dpo.annotate.choices import Choice, ChoiceLog, checked_name, read_all
from isr_dpo.annotate.session import open_session
from isr_dpo.annotate.sheet import rows_digest, sheet
from isr_dpo.errors import DataError, RecipeError
from isr_dpo.stores import read_bytes
from tests.judged_run import judged_row, write

JUDGED = [judged_row(number) for number in range(60)]


def choice(row_id: str = "clip-000_0", **changes: object) -> Choice:
    values = {"id": row_id, "video": "clip-000", "round": 1, "annotator": "anna", "shown_first": 0, "seconds": 1.5}
    return Choice.model_validate(values | {"choice": 1, "outcome": "preferred", "rows_digest": "d"} | changes)


def test_every_annotator_gets_the_same_rows_in_the_same_sequence() -> None:
    anna, bert = (sheet(JUDGED, rows=40, seed=3, annotator=name) for name in ("anna", "bert"))
    assert [item.id for item in anna] == [item.id for item in bert]
    assert [item.id for item in anna] != [row.id for row in JUDGED[:40]]
    assert anna == sheet(list(reversed(JUDGED)), rows=40, seed=3, annotator="anna")


def test_each_annotator_sees_another_answer_first_and_each_about_half_the_time() -> None:
    anna, bert = (sheet(JUDGED, rows=60, seed=3, annotator=name) for name in ("anna", "bert"))
    assert 18 <= sum(item.shown_first for item in anna) <= 42
    assert 18 <= sum(a.shown_first != b.shown_first for a, b in zip(anna, bert, strict=True)) <= 42
    by_id = {row.id: row for row in JUDGED}
    for item in anna:
        assert item.answers == tuple(by_id[item.id].responses[item.response(place)] for place in (0, 1))


def test_more_rows_only_add_to_fewer_and_another_seed_draws_others() -> None:
    drawn = [item.id for item in sheet(JUDGED, rows=30, seed=0, annotator="anna")]
    assert [item.id for item in sheet(JUDGED, rows=10, seed=0, annotator="anna")] == drawn[:10]
    assert [item.id for item in sheet(JUDGED, rows=10, seed=1, annotator="anna")] != drawn[:10]


def test_only_rows_with_two_different_answers_are_labelled_whatever_the_judge_made_of_them() -> None:
    rows = [
        judged_row(0),
        judged_row(1, responses=("the same", "the same "), outcome="identical", winner=None),
        judged_row(2, responses=("one", " "), outcome="empty", winner=None),
        judged_row(3, outcome="tie", winner=None),
        judged_row(4, outcome="unparsed", winner=None),
    ]
    assert {item.id for item in sheet(rows, rows=9, seed=0, annotator="a")} == {rows[i].id for i in (0, 3, 4)}


def test_the_digest_is_that_of_what_was_compared_and_not_of_the_judgement() -> None:
    assert rows_digest(JUDGED) == rows_digest([row.model_copy(update={"winner": 1}) for row in reversed(JUDGED)])
    assert rows_digest(JUDGED) != rows_digest([judged_row(0, responses=("x", "y")), *JUDGED[1:]])


def test_the_last_choice_of_a_row_counts_and_the_earlier_ones_stay(run_uri: str) -> None:
    log = ChoiceLog(layout.choices(run_uri, 1, "anna"))
    assert log.add(choice(choice=0))
    assert log.add(choice("clip-001_0", outcome="tie", choice=None))
    assert log.add(choice(choice=1))
    assert not log.add(choice(choice=1, seconds=9.0))
    assert len(read_bytes(log.uri).splitlines()) == 3
    again = ChoiceLog(log.uri)
    assert again.standing == log.standing
    assert {i: (c.choice, c.outcome) for i, c in again.standing.items()} == {
        "clip-000_0": (1, "preferred"),
        "clip-001_0": (None, "tie"),
    }


def test_a_line_that_a_kill_cut_short_goes_and_the_rest_stands(tmp_path: Path) -> None:
    uri = str(tmp_path / "analysis" / "choices-round-01-anna.jsonl")
    ChoiceLog(uri).add(choice())
    whole = Path(uri).read_bytes()
    Path(uri).write_bytes(whole + whole[:40])
    log = ChoiceLog(uri)
    assert list(log.standing) == ["clip-000_0"]
    log.add(choice("clip-001_0"))
    assert [json.loads(line)["id"] for line in Path(uri).read_text().splitlines()] == ["clip-000_0", "clip-001_0"]


def test_a_damaged_line_is_named_with_file_and_line(tmp_path: Path) -> None:
    path = Path(layout.choices(str(tmp_path), 1, "anna"))
    path.parent.mkdir()
    path.write_text(choice().model_dump_json() + '\n{"id": "x"}\n')
    with pytest.raises(DataError, match=r"choices-round-01-anna\.jsonl:2: not a Choice row"):
        read_all(str(tmp_path), 1)


def test_two_pages_of_one_annotator_lose_no_choice(tmp_path: Path) -> None:
    uri = str(tmp_path / "choices.jsonl")
    logs = [ChoiceLog(uri), ChoiceLog(uri)]

    def label(log: ChoiceLog, prefix: str) -> None:
        for number in range(25):
            log.add(choice(f"{prefix}-{number}"))

    threads = [threading.Thread(target=label, args=(log, str(i))) for i, log in enumerate(logs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ChoiceLog(uri).standing) == 50


def test_a_process_killed_right_after_a_choice_has_kept_it(tmp_path: Path) -> None:
    uri = str(tmp_path / "new" / "choices.jsonl")
    program = f"""
import os, signal
from tests.annotate.test_choices import choice
from isr_dpo.annotate.choices import ChoiceLog
ChoiceLog({uri!r}).add(choice())
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=300).returncode == -9
    assert list(ChoiceLog(uri).standing) == ["clip-000_0"]


def test_choices_are_read_by_annotator_and_by_round(run_uri: str) -> None:
    for name in ("bert", "anna", "oracle:rule-based"):
        ChoiceLog(layout.choices(run_uri, 1, name)).add(choice(annotator=name))
    ChoiceLog(layout.choices(run_uri, 2, "anna")).add(choice("clip-009_0"))
    found = read_all(run_uri, 1)
    assert list(found) == ["anna", "bert", "oracle:rule-based"]
    assert [c.id for c in found["anna"]] == ["clip-000_0"]
    assert read_all(run_uri, 7) == {}


@pytest.mark.parametrize("name", ["", "../x", "a b", "oracle", "Oracle-rules", "a" * 65, "-x"])
def test_a_name_that_cannot_be_an_annotator_s_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="--annotator"):
        checked_name(name)


def test_an_oracle_named_by_its_model_gets_a_file_of_its_own() -> None:
    uri = layout.choices("runs/a", 1, "oracle:org/model:7b")
    assert uri == "runs/a/analysis/choices-round-01-oracle-org-model-7b.jsonl"
    assert layout.choices("runs/a", 1, "../../x") == "runs/a/analysis/choices-round-01-..-..-x.jsonl"


def test_a_session_works_on_every_store(run_uri: str) -> None:
    write(run_uri, JUDGED[:6])
    session = open_session(run_uri, round_index=1, rows=4, seed=0, annotator="anna")
    assert session.item(0)["frames"] == 8
    assert session.frame(3, 7)[:4] == b"RIFF"
    session.choose({"id": session.items[1].id, "verdict": "second", "seconds": 3})
    session.choose({"id": session.items[1].id, "verdict": "first", "seconds": 3})
    again = open_session(run_uri, round_index=1, rows=4, seed=0, annotator="anna")
    assert again.state()["labelled"] == [None, "first", None, None]
