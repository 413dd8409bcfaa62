"""Rows are checked before anything is decoded, and every complaint names file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from isr_dpo import config
from isr_dpo.data.sources import Sources, read_sources
from isr_dpo.errors import DataError
from isr_dpo.records import to_jsonl


def train_row(number: int = 0, **changes: Any) -> dict[str, Any]:
    return {"id": f"q{number}", "video": f"v{number}.mp4", "prompt": "what is it ?", "answer": "a cat"} | changes


def held_out_row(number: int = 0, **changes: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<video>\nwhat ?"}, {"from": "gpt", "value": "a dog"}]
    return {"id": f"t{number}", "video": f"v{number}.mp4", "caption": "a dog runs", "conversations": turns} | changes


def write(path: Path, rows: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def read(folder: Path, train: list[Any], dev: list[Any] | None = None) -> Sources:
    sets = {"dev": write(folder / "dev.qa.jsonl", dev)} if dev is not None else {}
    return read_sources(config.Data(train=write(folder / "train.jsonl", train), sets=sets))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([train_row(0), "{broken"], r"train.jsonl:2: not a TrainRow row: .*JSON"),
        ([train_row(0), "", {"id": "q1", "prompt": "x"}], r"train.jsonl:3: not a TrainRow row: video: Field required"),
        ([train_row(0, video="")], r"train.jsonl:1: row 'q0' has an empty video"),
        ([train_row(0, video=7)], r"train.jsonl:1: not a TrainRow row: video:"),
        (
            [train_row(0), "", train_row(1), train_row(0)],
            r"train.jsonl:4: id 'q0' stands at .*train.jsonl:1 already",
        ),
        ([train_row(0, chosen="yes")], r"train.jsonl:1: row 'q0' has 'chosen' without 'rejected'"),
        ([train_row(0, rejected="no")], r"train.jsonl:1: row 'q0' has 'rejected' without 'chosen'"),
        ([], r"data.train: .*train.jsonl has no rows"),
    ],
)
def test_a_bad_training_row_is_named_by_file_and_line(tmp_path: Path, train: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, train)


@pytest.mark.parametrize(
    ("dev", "message"),
    [
        ([held_out_row(0), held_out_row(0)], r"dev.qa.jsonl:2: id 't0' stands at .*dev.qa.jsonl:1 already"),
        ([held_out_row(0, conversations=[])], r"dev.qa.jsonl:1: not a TestRow row"),
        ([], r"data.sets.dev: .*dev.qa.jsonl has no rows"),
    ],
)
def test_a_bad_evaluation_row_is_named_by_file_and_line(tmp_path: Path, dev: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, [train_row(0)], dev)


def test_a_missing_file_and_bad_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.train: there is no .*absent.jsonl"):
        read_sources(config.Data(train=str(tmp_path / "absent.jsonl")))
    (tmp_path / "train.jsonl").write_bytes(json.dumps(train_row(0)).encode() + b"\n{\xff}\n")
    with pytest.raises(DataError, match=r"train.jsonl:2: not UTF-8"):
        read_sources(config.Data(train=str(tmp_path / "train.jsonl")))


def test_an_odd_line_separator_inside_a_text_does_not_split_its_row(tmp_path: Path) -> None:
    row = json.dumps(train_row(0, prompt="one\u2028two"), ensure_ascii=False)
    assert read(tmp_path, [row]).questions[0].prompt == "one\u2028two"


def test_videos_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    sources = read(tmp_path, [train_row(0, video="clips/a.mp4"), train_row(1, video="/data/b.mp4")])
    assert sources.videos == {"/data/b.mp4": "/data/b.mp4", "clips/a.mp4": str(tmp_path / "clips" / "a.mp4")}
    assert list(sources.videos) == sorted(sources.videos)
    assert set(sources.identities.values()) == {None}  # neither is there


def two_files(tmp_path: Path, first: bytes, second: bytes) -> Sources:
    train = write(tmp_path / "one" / "train.jsonl", [train_row(0)])
    dev = write(tmp_path / "other" / "dev.qa.jsonl", [held_out_row(0)])
    (tmp_path / "one" / "v0.mp4").write_bytes(first)
    (tmp_path / "other" / "v0.mp4").write_bytes(second)
    return read_sources(config.Data(train=train, sets={"dev": dev}))


def test_one_name_for_two_different_videos_is_refused_naming_both(tmp_path: Path) -> None:
    message = r"'v0.mp4' means .*one/v0.mp4 at .*train.jsonl:1 and .*other/v0.mp4 at .*dev.qa.jsonl:1"
    with pytest.raises(DataError, match=message):
        two_files(tmp_path, b"a cat", b"a dog")


def test_copies_of_one_video_may_share_its_name(tmp_path: Path) -> None:
    assert list(two_files(tmp_path, b"a cat", b"a cat").videos) == ["v0.mp4"]


def test_the_same_id_may_stand_in_different_files(tmp_path: Path) -> None:
    sources = read(tmp_path, [train_row(0, id="same")], [held_out_row(0, id="same")])
    assert len(sources.questions) == len(sources.sets["dev"]) == 1


def test_the_identity_of_a_video_changes_with_its_content_alone(tmp_path: Path) -> None:
    def identity(content: bytes) -> str | None:
        (tmp_path / "v0.mp4").write_bytes(content)
        return read(tmp_path, [train_row(0)]).identities["v0.mp4"]

    base = bytes(300_000)
    assert identity(base) == identity(base)
    others = [identity(base[:-1]), identity(b"\1" + base[1:]), identity(base[:-1] + b"\1"), identity(b"")]
    assert len({identity(base), *others}) == 5


def test_ground_truth_is_not_kept(tmp_path: Path) -> None:
    seed = {"chosen": "a cat", "rejected": "a dog", "chosen_score": 5, "rejected_score": 2.5}
    sources = read(tmp_path, [train_row(0, caption="a cat sleeps", **seed), train_row(1)])
    assert [q.model_dump() for q in sources.questions] == [
        {"id": f"q{i}", "video": f"v{i}.mp4", "prompt": "what is it ?"} for i in (0, 1)
    ]
    assert [s.model_dump() for s in sources.seeds] == [
        {"id": "q0", "video": "v0.mp4", "prompt": "what is it ?", "answer": ""} | seed
    ]


def test_published_rows_may_have_numbers_for_ids_or_idx(tmp_path: Path) -> None:
    without = {key: value for key, value in held_out_row(1).items() if key != "id"}
    sources = read(tmp_path, [train_row(0, id=7)], [held_out_row(0, id=8), without | {"idx": 9}])
    assert sources.questions[0].id == "7"
    assert [row.id for row in sources.sets["dev"]] == ["8", "9"]
    with pytest.raises(DataError, match=r"dev.qa.jsonl:1: not a TestRow row: id: Field required"):
        read(tmp_path, [train_row(0)], [without])
    with pytest.raises(DataError, match=r"dev.qa.jsonl:2: id '8' stands at"):
        read(tmp_path, [train_row(0)], [held_out_row(0, id="8"), held_out_row(0, id=8)])


def test_official_rows_have_no_caption(tmp_path: Path) -> None:
    row = {key: value for key, value in held_out_row(0).items() if key != "caption"}
    assert read(tmp_path, [train_row(0)], [row]).sets["dev"][0].caption is None


def test_one_root_holds_the_videos_of_all_files(tmp_path: Path) -> None:
    (tmp_path / "videos" / "v0").mkdir(parents=True)
    (tmp_path / "videos" / "v1.tar").write_bytes(b"")
    (tmp_path / "videos" / "v2.avi").write_bytes(b"")
    train = write(tmp_path / "one" / "train.jsonl", [train_row(0, video="v0"), train_row(1, video="v1")])
    rows = [held_out_row(1, video="v1"), held_out_row(2, video="test/msvd/v2"), held_out_row(3, video="test/msvd/v3")]
    dev = write(tmp_path / "other" / "dev.qa.jsonl", rows)
    root = tmp_path / "videos"
    sources = read_sources(config.Data(train=train, sets={"dev": dev}, videos=str(root)))
    assert sources.videos == {
        "test/msvd/v2": f"{root}/v2.avi",
        "test/msvd/v3": f"{root}/test/msvd/v3",
        "v0": f"{root}/v0/",
        "v1": f"{root}/v1.tar",
    }
    assert [video for video, identity in sources.identities.items() if identity is None] == ["test/msvd/v3"]


def test_an_ambiguous_video_is_named_by_file_and_line(tmp_path: Path) -> None:
    for suffix in ("mp4", "mkv"):
        (tmp_path / f"v1.{suffix}").write_bytes(b"")
    with pytest.raises(DataError, match=r"train.jsonl:2: video 'v1' may be any of .*v1.mp4, .*v1.mkv"):
        read(tmp_path, [train_row(0), train_row(1, video="v1")])


def test_published_rows_are_written_as_they_were_read(tmp_path: Path) -> None:
    """So that existing scripts read our files; a row without an id gains one."""
    rows = [
        held_out_row(0, source="msvd", tags=[{"a": None}], note=None),
        {key: value for key, value in held_out_row(1).items() if key not in ("id", "caption")} | {"idx": 4},
    ]
    written = to_jsonl(read(tmp_path, [train_row(0)], rows).sets["dev"]).decode().splitlines()
    assert [json.loads(line) for line in written] == [rows[0], rows[1] | {"id": "4"}]


def test_one_clip_is_not_taken_for_those_of_two_sets(tmp_path: Path) -> None:
    (tmp_path / "1.tar").write_bytes(b"")
    train = write(tmp_path / "train.jsonl", [train_row(0, video="2")])
    dev = write(tmp_path / "dev.qa.jsonl", [held_out_row(0, video="msvd/1.avi"), held_out_row(1, video="tgif/1")])
    with pytest.raises(DataError, match=r"dev.qa.jsonl:2: video 'tgif/1' and 'msvd/1.avi' .* both lead to .*/1.tar"):
        read_sources(config.Data(train=train, sets={"dev": dev}, videos=str(tmp_path)))
