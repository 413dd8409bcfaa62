"""The dev set: disjoint by clip from test files and from what is trained on, the same for the same seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from isr_dpo import config
from isr_dpo.cli import main
from isr_dpo.data.clips import clip_id
from isr_dpo.data.dev import Cut, cut_dev
from isr_dpo.data.sources import read_sources
from isr_dpo.errors import DataError
from isr_dpo.stores import join, read_bytes

CLIPS, PER_CLIP = 40, 3


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def read(uri: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_bytes(uri).decode().split("\n") if line]


@pytest.fixture
def train(tmp_path: Path) -> str:
    """Three rows a clip, as published, with keys that nobody knows."""
    return write(
        tmp_path / "sft_dpo_17k.jsonl",
        [
            {"id": f"v{i}_{q}", "video": f"v{i}", "prompt": f"what {q} ?", "answer": f"it is {i}-{q}", "chosen": "é",
             "rejected": "b", "chosen_score": 5.0, "rejected_score": 2.0, "extra": None}
            for q in range(PER_CLIP)
            for i in range(CLIPS)
        ],
    )  # fmt: skip


@pytest.fixture
def tests_(tmp_path: Path) -> list[str]:
    """Two test files that name training clips by path, with and without a suffix."""
    turns = [{"from": "human", "value": "<video>\nwhat ?"}, {"from": "gpt", "value": "it"}]
    return [
        write(
            tmp_path / f"{name}.qa.jsonl",
            [{"idx": i, "video": video.format(i), "caption": "c", "conversations": turns} for i in clips],
        )
        for name, video, clips in (
            ("msvd", "test/msvd/v{}.avi", range(0, 20)),
            ("tgif", "/data/tgif/v{}", (20, 21, 99)),
        )
    ]


def cut(train: str, against: list[str], out: Path | str, questions: int = 12, **options: Any) -> Cut:
    return cut_dev(train, against=against, questions=questions, out=str(out), **options)


def test_dev_shares_no_clip_with_test_files_or_training(train: str, tests_: list[str], tmp_path: Path) -> None:
    made = cut(train, tests_, tmp_path / "out")
    dev, left = read(made.dev_uri), read(made.train_uri)
    held_out = {clip_id(row["video"]) for uri in tests_ for row in read(uri)}
    dev_clips = {row["video"] for row in dev}
    assert not dev_clips & held_out
    assert not dev_clips & {row["video"] for row in left}
    assert {row["id"] for row in dev} | {row["id"] for row in left} == {row["id"] for row in read(train)}
    assert (made.dev_questions, made.dev_clips, made.train_rows) == (12, 4, CLIPS * PER_CLIP - 12)
    assert made.shared_clips == 22


def test_rows_that_stay_are_the_same_bytes(train: str, tests_: list[str], tmp_path: Path) -> None:
    made = cut(train, tests_, tmp_path / "out")
    lines = Path(train).read_text().splitlines()
    chosen = {row["video"] for row in read(made.dev_uri)}
    assert Path(made.train_uri).read_text().splitlines() == [x for x in lines if json.loads(x)["video"] not in chosen]


def test_dev_rows_are_in_the_published_schema(train: str, tests_: list[str], tmp_path: Path) -> None:
    made = cut(train, tests_, tmp_path / "out")
    assert made.dev_uri.endswith("dev.qa.official.jsonl")
    by_id = {row["id"]: row for row in read(train)}
    for row in read(made.dev_uri):
        source = by_id[row["id"]]
        assert row == {
            "id": source["id"],
            "video": source["video"],
            "conversations": [
                {"from": "human", "value": "<video>\n" + source["prompt"]},
                {"from": "gpt", "value": source["answer"]},
            ],
        }
    sources = read_sources(config.Data(train=made.train_uri, sets={"dev": made.dev_uri}))
    assert len(sources.sets["dev"]) == made.dev_questions


def test_captions_are_joined_by_clip(train: str, tests_: list[str], tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<video>\nDescribe"}, {"from": "gpt", "value": "a long story"}]
    captions = write(
        tmp_path / "captions.jsonl",
        [{"id": f"{i}", "video": f"frames/v{i}.mp4", "caption": f"story {i}"} for i in range(25, 30)]
        + [
            {"id": "x", "video": "v30", "conversations": turns},
            {"video": "v30", "caption": "later"},
            {"video": "other"},
        ],
    )
    made = cut(train, tests_, tmp_path / "out", questions=18, captions=captions)
    assert made.dev_uri.endswith("/dev.qa.jsonl")
    told = {row["video"]: row["caption"] for row in read(made.dev_uri)}
    assert told == {**{f"v{i}": f"story {i}" for i in range(25, 30)}, "v30": "a long story"}
    with pytest.raises(DataError, match=r"19 questions were asked for; 6 clips .* with a caption in .* have 18"):
        cut(train, tests_, tmp_path / "out", questions=19, captions=captions)
    bare = write(tmp_path / "bare.jsonl", [{"video": "v30"}])
    with pytest.raises(DataError, match=r"bare.jsonl:1: no caption"):
        cut(train, tests_, tmp_path / "out", questions=3, captions=bare)


def test_the_seed_alone_decides(train: str, tests_: list[str], tmp_path: Path) -> None:
    one = cut(train, tests_, tmp_path / "one")
    same = cut(train, tests_, tmp_path / "same")
    other = cut(train, tests_, tmp_path / "other", seed=1)
    assert read(one.dev_uri) == read(same.dev_uri)
    assert read(one.dev_uri) != read(other.dev_uri)
    shuffled = write(tmp_path / "shuffled.jsonl", list(reversed(read(train))))
    again = cut(shuffled, tests_, tmp_path / "again")
    assert {row["id"] for row in read(again.dev_uri)} == {row["id"] for row in read(one.dev_uri)}
    assert json.loads((tmp_path / "one" / "dev.json").read_text())["clips"] == sorted(
        {row["video"] for row in read(one.dev_uri)}
    )


def test_a_larger_dev_set_holds_the_smaller_one(train: str, tests_: list[str], tmp_path: Path) -> None:
    small, large = cut(train, tests_, tmp_path / "s", 5), cut(train, tests_, tmp_path / "l", 30)
    assert small.dev_questions == 6  # whole clips
    assert {row["id"] for row in read(small.dev_uri)} < {row["id"] for row in read(large.dev_uri)}


def test_what_cannot_be_cut_is_said(train: str, tests_: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"99 questions were asked for; 18 clips outside the test files have 54"):
        cut(train, tests_, tmp_path / "out", 99)
    free = write(tmp_path / "free.qa.jsonl", [{"video": "elsewhere"}])
    with pytest.raises(DataError, match="leave no row to train on"):
        cut(train, [free], tmp_path / "out", CLIPS * PER_CLIP)
    silent = write(tmp_path / "silent.jsonl", [{"id": "1", "video": "a", "prompt": "?"}])
    with pytest.raises(DataError, match=r"silent.jsonl:1: row '1' has no answer, which"):
        cut(silent, [free], tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()


def test_a_dev_set_of_rows_that_nobody_trains_on(tests_: list[str], tmp_path: Path) -> None:
    def turns(question: str, answer: str) -> list[dict[str, str]]:
        return [{"from": "human", "value": f"{question}\n<video>"}, {"from": "gpt", "value": answer}]

    instructed = [
        {"id": f"v{i}_{q}", "video": f"v{i}", "conversations": turns(f"what {q} ?", f"it is {i}-{q}")}
        for i in range(15, 30)
        for q in range(2)
    ]
    stories = [
        {"id": f"v{i}", "video": f"v{i}", "conversations": turns("Describe it.", "and then " * 40)} for i in range(30)
    ]
    pool = write(tmp_path / "sft.jsonl", [*instructed, *stories, *instructed[:4]])  # published files repeat some
    pairs = write(tmp_path / "pairs.jsonl", [{"id": f"p{i}", "video": f"v{i}"} for i in (22, 23, 24)])
    made = cut(pool, [*tests_, pairs], tmp_path / "out", 8, alone=True, answer_words=20)
    assert made.train_uri is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["dev.json", "dev.qa.official.jsonl"]
    dev = read(made.dev_uri)
    assert {row["video"] for row in dev} <= {f"v{i}" for i in range(25, 30)}
    assert len({row["id"] for row in dev}) == made.dev_questions == 8
    by_id = {row["id"]: row["conversations"] for row in instructed}
    for row in dev:
        asked, answered = by_id[row["id"]]
        assert row["conversations"] == [
            {"from": "human", "value": "<video>\n" + asked["value"].partition("\n")[0]},
            {"from": "gpt", "value": answered["value"]},
        ]
    with pytest.raises(DataError, match="11 questions were asked for; 5 clips outside the test files have 10"):
        cut(pool, [*tests_, pairs], tmp_path / "out", 11, alone=True, answer_words=20)


@pytest.mark.parametrize("run_uri", ["moto"], indirect=True)
def test_the_command_writes_to_a_store(
    train: str, tests_: list[str], run_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "dev", train, "--against", *tests_, "--questions", "6", "--out", run_uri]) == 0
    assert f"data.sets.dev: {run_uri}/dev.qa.official.jsonl" in capsys.readouterr().out
    assert len(read(join(run_uri, "dev.qa.official.jsonl"))) == 6
