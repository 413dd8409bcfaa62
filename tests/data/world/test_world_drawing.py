"""The world on disk: deterministic, decodable, disjoint, in the published row formats."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from isr_dpo.data.world import SLOTS, draw
from isr_dpo.data.world.pixels import FRAMES, SIZE_PX, render
from isr_dpo.data.world.scene import caption, claim, false_claims, is_right, sample_scene, stated
from isr_dpo.errors import DataError

SIZES = {"seed": 3, "train": 10, "dev": 6, "test": 12, "seed_preferences": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "world"
    draw(folder, **SIZES)
    return folder


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_same_arguments_draw_the_same_bytes(world, tmp_path):
    draw(tmp_path / "again", **SIZES)
    assert digests(tmp_path / "again") == digests(world)


def test_another_seed_draws_other_clips(world, tmp_path):
    draw(tmp_path / "other", **{**SIZES, "seed": 4})
    assert set(digests(world).values()).isdisjoint(digests(tmp_path / "other").values())


def test_clips_decode_to_what_was_rendered(world):
    import av

    with av.open(str(world / "videos" / "train-00000.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    scene = sample_scene(np.random.default_rng([SIZES["seed"], 0]))
    assert frames.shape == (FRAMES, SIZE_PX, SIZE_PX, 3)
    assert np.abs(frames.astype(int) - render(scene).astype(int)).mean() < 8  # lossy, and colour at half resolution


def test_sets_share_no_clip(world):
    by_set = {
        name: {hashlib.sha256(p.read_bytes()).hexdigest() for p in (world / "videos").glob(f"{name}-*.mp4")}
        for name in ("train", "dev", "test")
    }
    assert [len(clips) for clips in by_set.values()] == [5, 1, 2]
    assert len(set.union(*by_set.values())) == 8


def test_training_rows_have_the_published_keys_and_preferences_only_where_asked(world):
    train = rows(world / "train.jsonl")
    plain = {"id", "video", "prompt", "answer"}
    assert [set(row) - plain for row in train[4:]] == [set()] * 6
    assert all(set(row) - plain == {"chosen", "rejected", "chosen_score", "rejected_score"} for row in train[:4])
    assert len({row["id"] for row in train}) == 10
    assert all((world / row["video"]).is_file() for row in train)


def test_held_out_rows_follow_both_protocols(world):
    caption_rows, official = rows(world / "test.qa.jsonl"), rows(world / "test.qa.official.jsonl")
    assert len(caption_rows) == 12
    assert [{k: v for k, v in row.items() if k != "caption"} for row in caption_rows] == official
    for row in caption_rows:
        human, answer = row["conversations"]
        assert human["from"] == "human"
        assert human["value"].startswith("<video>\n")
        assert answer["from"] == "gpt"
        assert false_claims(answer["value"], {s: v[0] for s, v in stated(row["caption"]).items()}) == 0


def test_drawing_again_leaves_a_complete_world_alone(world):
    before = {p: p.stat().st_mtime_ns for p in world.rglob("*")}
    said: list[str] = []
    draw(world, **SIZES, progress=said.append)
    assert "complete" in said[0]
    assert {p: p.stat().st_mtime_ns for p in world.rglob("*")} == before


def test_a_half_written_world_is_drawn_again(world, tmp_path):
    draw(tmp_path / "w", **SIZES)
    (tmp_path / "w" / "world.json").unlink()
    (tmp_path / "w" / "videos" / "train-00001.mp4").unlink()
    draw(tmp_path / "w", **SIZES)
    assert digests(tmp_path / "w") == digests(world)


def test_other_arguments_in_the_same_folder_are_refused(world):
    with pytest.raises(DataError, match="another world"):
        draw(world, **{**SIZES, "train": 8})


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match=r"thesis\.tex"):
        draw(tmp_path, **SIZES)


def test_altered_rows_are_refused(tmp_path):
    draw(tmp_path / "w", **SIZES)
    (tmp_path / "w" / "train.jsonl").write_text("")
    with pytest.raises(DataError, match="altered"):
        draw(tmp_path / "w", **SIZES)


@pytest.mark.parametrize("wrong", [{"train": 0}, {"seed": -1}, {"seed_preferences": 11}])
def test_impossible_numbers_are_named(tmp_path, wrong):
    with pytest.raises(DataError, match=next(iter(wrong))):
        draw(tmp_path / "w", **{**SIZES, **wrong})


def test_no_word_belongs_to_two_slots():
    words = [value for values in SLOTS.values() for value in values]
    assert len(words) == len(set(words))


def test_an_answer_is_right_when_it_names_the_true_value_and_no_other():
    facts = {slot: values[1] for slot, values in SLOTS.items()}
    assert is_right(claim("colour", "blue"), "colour", facts)
    assert is_right("the object is blue . the object rests .", "colour", facts)
    assert not is_right("the object is blue . the object is red .", "colour", facts)
    assert not is_right("the object rests .", "colour", facts)
    assert false_claims(caption(facts), facts) == 0
    assert false_claims("the object is blue . the object rests .", facts) == 1


def test_common_values_are_common():
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(2000)]
    for slot, values in SLOTS.items():
        share = np.mean([scene.facts[slot] == values[0] for scene in scenes])
        assert 0.3 < share < 0.4
