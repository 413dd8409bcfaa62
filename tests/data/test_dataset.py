"""Prepare: rows and videos become frames and dataset files, resumably, with every loss counted."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import numbers_of, write_clip
from stills import write_clip_tar, write_folder

from isr_dpo import config, outputs
from isr_dpo.data import dataset
from isr_dpo.data.dataset import dataset_section, frames_section, prepare_dataset, prepare_frames
from isr_dpo.data.decoder import Decoder
from isr_dpo.data.frames import FrameStore
from isr_dpo.data.sources import Sources, read_sources
from isr_dpo.data.video import Decoded, decode
from isr_dpo.digests import hash_file
from isr_dpo.errors import DataError, OutsideError, StoreError
from isr_dpo.manifest import Manifest, Origin
from isr_dpo.outputs import Output
from isr_dpo.stores import open_store

CLIPS = 6


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for i in range(CLIPS):
        write_clip(folder / f"v{i}.mp4", 10, first=100 * i)
    return folder


@pytest.fixture
def world(tmp_path: Path, clips: Path) -> Path:
    """A folder with six clips, a training file (two rows a clip, the first four rows seeds) and a dev set."""
    folder = tmp_path / "world"
    shutil.copytree(clips, folder)
    train = [
        {"id": f"q{i}", "video": f"v{i % CLIPS}.mp4", "prompt": f"question {i} ?", "answer": f"truth {i}"}
        | ({"chosen": "yes", "rejected": "no", "chosen_score": 5, "rejected_score": 2} if i < 4 else {})
        for i in range(2 * CLIPS)
    ]
    turns = [{"from": "human", "value": "<video>\nwhat ?"}, {"from": "gpt", "value": "täuschung"}]
    dev = [{"id": f"t{i}", "video": f"v{i}.mp4", "caption": "c", "conversations": turns, "extra": 1} for i in (5, 0)]
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "dev.qa.jsonl", dev)
    return folder


class InProcess(Decoder):
    """The same without a child process; counts what it decodes."""

    decoded: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.decoded = []

    def decode(self, path: str | Path, *, frames: int) -> Decoded:
        self.decoded.append(Path(path).name)
        return decode(path, frames=frames)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def sources_of(world: Path) -> Sources:
    return read_sources(config.Data(train=str(world / "train.jsonl"), sets={"dev": str(world / "dev.qa.jsonl")}))


def begin(run: Path, kind: str, section: str) -> Output:
    output = outputs.begin(str(run / kind), Origin(kind, "prepare", {}, section, ""))
    assert isinstance(output, Output)
    return output


def make_frames(
    run: Path,
    sources: Sources,
    *,
    resize: Callable[[np.ndarray], np.ndarray] = lambda frames: frames,
    workers: int = 2,
    limit: float = 0.0,
    new_decoder: Callable[[], Decoder] | None = None,
    progress: dataset.Progress = lambda done, total: None,
) -> Manifest:
    output = begin(run, "frames", frames_section(sources, frames=4, processor="p"))
    prepare_frames(
        sources,
        output,
        frames=4,
        resize=resize,
        workers=workers,
        max_unreadable_fraction=limit,
        progress=progress,
        new_decoder=new_decoder or InProcess,
    )
    return output.seal(rows=len(sources.videos), deterministic=True)


def make_dataset(run: Path, sources: Sources, *, limit: float = 0.0) -> tuple[Manifest, dict[str, float]]:
    output = begin(run, "dataset", dataset_section(sources))
    store = FrameStore(run / "frames")
    metrics = prepare_dataset(sources, output, store=store, max_unreadable_fraction=limit)
    return output.seal(rows=len(sources.questions), deterministic=True), metrics


def test_a_clean_world_becomes_frames_and_rows(world: Path, tmp_path: Path) -> None:
    sources = sources_of(world)
    make_frames(tmp_path, sources, new_decoder=Decoder)
    _, metrics = make_dataset(tmp_path, sources)
    store, made = FrameStore(tmp_path / "frames"), tmp_path / "dataset"
    assert numbers_of(store.read("v3.mp4")) == [300, 303, 306, 309]
    assert [row["id"] for row in read_jsonl(made / "train-00000.jsonl")] == [f"q{i}" for i in range(12)]
    assert all(set(row) == {"id", "video", "prompt"} for row in read_jsonl(made / "train-00000.jsonl"))
    assert [(row["id"], row["answer"], row["chosen"]) for row in read_jsonl(made / "seed-00000.jsonl")] == [
        (f"q{i}", "", "yes") for i in range(4)
    ]
    assert read_jsonl(made / "set-dev.jsonl") == read_jsonl(world / "dev.qa.jsonl")
    videos = read_jsonl(made / "videos.jsonl")
    assert videos[2] == {
        "video": "v2.mp4",
        "sha256": hash_file(world / "v2.mp4"),
        "frames": 4,
        "height": 48,
        "width": 64,
    }
    assert read_jsonl(made / "unreadable.jsonl") == []
    assert metrics == json.loads((made / "metrics.json").read_text())
    assert metrics == {
        "train_rows": 12,
        "seed_rows": 4,
        "videos": 6,
        "unreadable_videos": 0,
        "missing_videos": 0,
        "unreadable_rows": 0,
        "dev_rows": 2,
    }


def test_every_distinct_video_is_decoded_once(world: Path, tmp_path: Path) -> None:
    decoder = InProcess()
    make_frames(tmp_path, sources_of(world), workers=1, new_decoder=lambda: decoder)
    assert sorted(decoder.decoded) == [f"v{i}.mp4" for i in range(CLIPS)]


def test_frames_pass_through_the_processors_resize(world: Path, tmp_path: Path) -> None:
    make_frames(tmp_path, sources_of(world), resize=lambda frames: frames[:, :24, :32])
    assert FrameStore(tmp_path / "frames").read("v0.mp4").shape == (4, 24, 32, 3)


def test_a_resize_of_the_wrong_kind_is_our_own_mistake(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"resize gave float64 \(4, 48, 64, 3\), expected uint8 \(4, h, w, 3\)"):
        make_frames(tmp_path, sources_of(world), resize=lambda frames: frames / 2)


def test_answers_of_training_rows_change_nothing(world: Path, tmp_path: Path) -> None:
    with_answers = sources_of(world)
    make_frames(tmp_path / "a", with_answers)
    first, _ = make_dataset(tmp_path / "a", with_answers)
    rows = [{key: value for key, value in row.items() if key != "answer"} for row in read_jsonl(world / "train.jsonl")]
    write_rows(world / "train.jsonl", rows)
    without = sources_of(world)
    make_frames(tmp_path / "b", without)
    second, _ = make_dataset(tmp_path / "b", without)
    assert first.digest == second.digest
    assert first.origin == second.origin


def test_workers_and_attempts_give_the_same_bytes(world: Path, tmp_path: Path) -> None:
    digests = {
        make_frames(tmp_path / f"run-{i}", sources_of(world), workers=workers, new_decoder=new_decoder).digest
        for i, (workers, new_decoder) in enumerate([(1, InProcess), (3, InProcess), (2, Decoder)])
    }
    assert len(digests) == 1


def test_a_killed_prepare_repeats_only_the_shard_in_hand(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "VIDEOS_PER_SHARD", 2)
    sources = sources_of(world)
    whole = make_frames(tmp_path / "whole", sources)

    class Stopped(InProcess):
        def decode(self, path: str | Path, *, frames: int) -> Decoded:
            if Path(path).name == "v3.mp4":
                raise OutsideError("the store went away")
            return super().decode(path, frames=frames)

    with pytest.raises(OutsideError, match="went away"):
        make_frames(tmp_path / "run", sources, workers=1, new_decoder=Stopped)
    again, seen = InProcess(), []
    resumed = make_frames(
        tmp_path / "run",
        sources,
        workers=1,
        new_decoder=lambda: again,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert sorted(again.decoded) == ["v2.mp4", "v3.mp4", "v4.mp4", "v5.mp4"]
    assert seen[0] == (2, 6)
    assert seen[-1] == (6, 6)
    assert resumed.digest == whole.digest
    assert len(resumed.files) == 6


def test_a_shard_without_its_index_is_made_again(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "VIDEOS_PER_SHARD", 2)
    sources = sources_of(world)
    begin(tmp_path, "frames", frames_section(sources, frames=4, processor="p")).write("frames-00000.tar", b"half")
    make_frames(tmp_path, sources)
    assert numbers_of(FrameStore(tmp_path / "frames").read("v0.mp4"))[0] == 0


def spoil(world: Path) -> None:
    (world / "v1.mp4").write_bytes((world / "v1.mp4").read_bytes()[:-500])
    (world / "v5.mp4").unlink()


def test_unreadable_videos_below_the_limit_are_set_aside_and_counted(world: Path, tmp_path: Path) -> None:
    spoil(world)
    sources = sources_of(world)
    make_frames(tmp_path, sources, limit=0.5)
    _, metrics = make_dataset(tmp_path, sources, limit=0.5)
    made = tmp_path / "dataset"
    aside = {row["video"]: row["reason"] for row in read_jsonl(made / "unreadable.jsonl")}
    assert aside["v5.mp4"] == f"no such file: {world / 'v5.mp4'}"
    assert aside["v1.mp4"].startswith("cut off")
    kept = [row["id"] for row in read_jsonl(made / "train-00000.jsonl")]
    assert kept == [f"q{i}" for i in range(12) if i % CLIPS not in (1, 5)]
    assert [row["id"] for row in read_jsonl(made / "seed-00000.jsonl")] == ["q0", "q2", "q3"]
    assert [row["id"] for row in read_jsonl(made / "set-dev.jsonl")] == ["t0"]
    assert (metrics["videos"], metrics["unreadable_videos"], metrics["unreadable_rows"]) == (4, 2, 5)


def test_the_share_that_just_reaches_the_limit_is_allowed(world: Path, tmp_path: Path) -> None:
    spoil(world)
    make_frames(tmp_path, sources_of(world), limit=2 / 6)


def test_above_the_limit_prepare_fails_naming_count_and_reasons(world: Path, tmp_path: Path) -> None:
    spoil(world)
    message = (
        r"2 of 6 videos are unreadable, above data.max_unreadable_fraction 0.2.*\n  v1.mp4: cut off.*\n  v5.mp4: no"
    )
    with pytest.raises(DataError, match=message):
        make_frames(tmp_path, sources_of(world), limit=0.2)
    assert not (tmp_path / "frames" / "manifest.json").exists()


def test_only_the_first_ten_are_named(world: Path, tmp_path: Path) -> None:
    rows = [{"id": f"q{i}", "video": f"absent{i:02d}.mp4", "prompt": "?"} for i in range(13)]
    write_rows(world / "train.jsonl", rows)
    decoder = InProcess()
    with pytest.raises(DataError) as raised:
        make_frames(tmp_path, sources_of(world), workers=1, new_decoder=lambda: decoder)
    assert str(raised.value).count("no such file") == 10
    assert str(raised.value).endswith("... and 3 more")
    assert decoder.decoded == []  # missing files are found before anything is decoded


def test_a_tighter_limit_also_holds_for_frames_that_stand(world: Path, tmp_path: Path) -> None:
    spoil(world)
    sources = sources_of(world)
    make_frames(tmp_path, sources, limit=0.5)
    with pytest.raises(DataError, match="2 of 6 videos are unreadable"):
        make_dataset(tmp_path, sources, limit=0.1)


def test_a_set_that_loses_all_its_rows_is_refused(world: Path, tmp_path: Path) -> None:
    for name in ("v0.mp4", "v5.mp4"):
        (world / name).unlink()
    sources = sources_of(world)
    make_frames(tmp_path, sources, limit=0.5)
    with pytest.raises(DataError, match=r"data.sets.dev: no row is left"):
        make_dataset(tmp_path, sources, limit=0.5)


def test_the_cache_key_holds_what_the_pixels_depend_on(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = sources_of(world)
    base = frames_section(sources, frames=4, processor="p")
    assert base == frames_section(sources_of(world), frames=4, processor="p")
    others = [frames_section(sources, frames=5, processor="p"), frames_section(sources, frames=4, processor="q")]
    write_clip(world / "v0.mp4", 11)
    others.append(frames_section(sources_of(world), frames=4, processor="p"))
    monkeypatch.setattr(dataset.video_files, "SAMPLER", "another")
    others.append(frames_section(sources, frames=4, processor="p"))
    assert len({base, *others}) == 5


def test_a_full_disk_while_a_shard_is_written_is_named(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, *args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset.FrameWriter, "add", full)
    with pytest.raises(StoreError, match="No space left on device; free some space or point TMPDIR"):
        make_frames(tmp_path, sources_of(world))


def test_nothing_keeps_running_after_a_failure(world: Path, tmp_path: Path) -> None:
    made: list[Decoder] = []

    def new_decoder() -> Decoder:
        made.append(Decoder())
        return made[-1]

    sources = sources_of(world)
    output = begin(tmp_path, "frames", frames_section(sources, frames=4, processor="p"))

    def fail(frames: np.ndarray) -> np.ndarray:
        raise RuntimeError("the processor broke")

    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="the processor broke"):
        prepare_frames(
            sources, output, frames=4, resize=fail, workers=2, max_unreadable_fraction=0, new_decoder=new_decoder
        )
    assert [decoder._process for decoder in made] == [None, None]
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("run_uri", ["moto"], indirect=True)
def test_rows_and_videos_may_lie_in_s3(world: Path, tmp_path: Path, run_uri: str) -> None:
    (world / "v5.mp4").unlink()
    store = open_store(run_uri)
    for path in world.iterdir():
        store.put(path, f"{run_uri}/{path.name}")
    sources = read_sources(config.Data(train=f"{run_uri}/train.jsonl", sets={"dev": f"{run_uri}/dev.qa.jsonl"}))
    make_frames(tmp_path, sources, limit=0.5)
    _, metrics = make_dataset(tmp_path, sources, limit=0.5)
    assert metrics["videos"] == 5
    assert numbers_of(FrameStore(tmp_path / "frames").read("v3.mp4")) == [300, 303, 306, 309]
    assert FrameStore(tmp_path / "frames").unreadable() == {"v5.mp4": f"no such file: {run_uri}/v5.mp4"}


def test_frame_folders_and_tars_are_prepared_beside_video_files(world: Path, tmp_path: Path) -> None:
    for i in (2, 3):
        (world / f"v{i}.mp4").unlink()
    write_folder(world / "v2", 10, first=200)
    write_clip_tar(world / "v3.tar", 10, first=300)
    sources = sources_of(world)
    make_frames(tmp_path, sources, new_decoder=Decoder)
    store = FrameStore(tmp_path / "frames")
    for i in range(4):
        assert numbers_of(store.read(f"v{i}.mp4")) == [100 * i + n for n in (0, 3, 6, 9)]
        assert len(store.describe(f"v{i}.mp4").sha256) == 64


def test_missing_videos_are_listed_counted_and_said(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i in (1, 2, 4, 5):
        (world / f"v{i}.mp4").unlink()
    (world / "v0.mp4").write_bytes(b"broken")
    sources = sources_of(world)
    make_frames(tmp_path, sources, limit=0.9)
    rows = read_jsonl(world / "train.jsonl")
    write_rows(world / "dev.qa.jsonl", [row | {"video": "v3.mp4"} for row in read_jsonl(world / "dev.qa.jsonl")])
    sources = sources_of(world)
    _, metrics = make_dataset(tmp_path, sources, limit=0.9)
    assert (metrics["missing_videos"], metrics["unreadable_videos"]) == (4, 5)
    listed = read_jsonl(tmp_path / "dataset" / "unreadable.jsonl")
    assert listed[1] == {"video": "v1.mp4", "reason": f"no such file: {world}/v1.mp4"}
    assert "4 of 6 videos are missing: v1.mp4, v2.mp4, v4.mp4, ..." in caplog.text
    assert len(rows) - metrics["train_rows"] == metrics["unreadable_rows"] == 10
