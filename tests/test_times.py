import json
from pathlib import Path

import pytest

from isr_dpo import layout, times
from isr_dpo.errors import CorruptOutput


def record(run: str, step: str, index: int, **more: object) -> None:
    times.record(run, step, index, started=1.7e9 + index, seconds=2.5, **more)  # type: ignore[arg-type]


def test_a_step_is_recorded_with_how_much_it_did(tmp_path: Path) -> None:
    run = str(tmp_path)
    record(run, "generate", 1, metrics={"rows": 700, "response_words": 5.5})
    record(run, "evaluate", 2, metrics={"pending_sets": 0, "dev/rows": 300, "test/rows": 200})
    generate, evaluate = times.read(run)
    assert (generate.step, generate.index, generate.rows, generate.unit) == ("generate", 1, 700, "questions")
    assert (generate.seconds, generate.done) == (2.5, True)
    assert generate.attempts[0].started == "2023-11-14T22:13:21Z"
    assert (evaluate.rows, evaluate.unit) == (500, "answers")


def test_attempts_that_failed_count_until_the_step_is_done(tmp_path: Path) -> None:
    run = str(tmp_path)
    record(run, "judge", 1, ended="OutsideError")
    assert not times.read(run)[0].done
    record(run, "judge", 1, metrics={"rows": 10})
    (judge,) = times.read(run)
    assert (judge.seconds, judge.done, judge.rows) == (5.0, True, 10)


def test_work_done_anew_begins_a_new_record(tmp_path: Path) -> None:
    run = str(tmp_path)
    record(run, "judge", 1)
    record(run, "judge", 1)
    assert times.read(run)[0].seconds == 2.5


def test_the_shares_of_a_step_are_told_apart(tmp_path: Path) -> None:
    run = str(tmp_path)
    for share in (0, 1, 2):
        record(run, "generate", 1, share=share)
    assert sorted(time.share for time in times.read(run)) == [0, 1, 2]


def test_a_run_without_records_has_no_times(tmp_path: Path) -> None:
    assert times.read(str(tmp_path / "nowhere")) == []


@pytest.mark.parametrize("content", ["{", "[]", '{"attempts": []}', json.dumps({"attempts": [{"seconds": 1}]})])
def test_a_damaged_record_is_named_and_written_anew(tmp_path: Path, content: str) -> None:
    run = str(tmp_path)
    path = Path(layout.time(run, "judge", 1))
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(CorruptOutput, match="judge-01"):
        times.read(run)
    record(run, "judge", 1)
    assert times.read(run)[0].done
