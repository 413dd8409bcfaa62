"""A row's video is found by its path or its clip id, as a file, a folder of frames or a tar, on a disk and in S3."""

from __future__ import annotations

from pathlib import Path

import pytest
from clips import numbers_of, write_clip
from stills import clip_frames, write_clip_tar, write_folder

from isr_dpo.data.clips import Library, clip_id, hash_clip, local_copy, may_be_same
from isr_dpo.data.video import decode
from isr_dpo.errors import DataError
from isr_dpo.stores import Missing, join, open_store, write_bytes


@pytest.mark.parametrize(
    ("video", "clip"),
    [
        ("v_1a.b", "v_1a.b"),
        ("test/actnet/v_1-Scene-012", "v_1-Scene-012"),
        ("/mnt/data/msvd/x.avi", "x"),
        ("s3://bucket/a/x.MP4", "x"),
        ("x.tar", "x"),
        ("clips/x/", "x"),
        (".mp4", ".mp4"),
    ],
)
def test_a_clip_id_is_the_name_without_the_suffix_of_a_video(video: str, clip: str) -> None:
    assert clip_id(video) == clip


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("x", "test/msvd/x.avi", True),
        ("msvd/x", "/mnt/data/test/msvd/x.avi", True),
        ("msvd/x", "tgif/x", False),
        ("/mnt/a/msvd/x", "test/msvd/x", False),
        ("s3://bucket/x.tar", "x", True),
    ],
)
def test_paths_of_which_one_ends_the_other_may_mean_one_clip(one: str, other: str, same: bool) -> None:
    assert may_be_same(one, other) is may_be_same(other, one) is same


def put(store: str, *names: str) -> None:
    for name in names:
        write_bytes(join(store, name), name.encode())


@pytest.mark.parametrize("run_uri", ["local", "moto"], indirect=True)
def test_a_bare_id_finds_a_folder_then_a_tar_then_a_video(run_uri: str) -> None:
    put(run_uri, "a.mp4", "b.mp4", "b.tar", "c.webm", "c.tar", "c/c01_0001.jpeg", "d.mp4", "d.txt", "e/notes/x.jpeg")
    library = Library()

    def found(video: str) -> str:
        return library.locate(video, folder=run_uri).removeprefix(f"{run_uri}/")

    assert [found(name) for name in ("a", "b", "c", "d")] == ["a.mp4", "b.tar", "c/", "d.mp4"]
    assert [found(name) for name in ("a.mp4", "b.mp4", "c.webm")] == [
        "a.mp4",
        "b.mp4",
        "c.webm",
    ]  # a file that is there
    assert [found(name) for name in ("a.avi", "b.avi", "c.avi")] == ["a.mp4", "b.tar", "c/"]  # raw here, frames there
    assert found("nothing") == "nothing"
    assert library.identity(library.locate("nothing", folder=run_uri)) is None
    identities = [library.identity(library.locate(name, folder=run_uri)) for name in ("a", "b", "c")]
    assert None not in identities
    if "://" not in run_uri:  # S3 shows no content
        assert len(set(identities)) == 3


@pytest.mark.parametrize("run_uri", ["local", "moto"], indirect=True)
def test_several_videos_of_one_name_are_ambiguous(run_uri: str) -> None:
    put(run_uri, "a.mp4", "a.webm")
    with pytest.raises(DataError, match=r"'a' may be any of .*/a.mp4, .*/a.webm: keep one, or name it"):
        Library().locate("a", folder=run_uri)
    assert Library().locate("a.webm", folder=run_uri) == f"{run_uri}/a.webm"


@pytest.mark.parametrize("run_uri", ["local", "moto"], indirect=True)
def test_published_paths_are_found_in_the_root_by_path_or_by_clip_id(run_uri: str) -> None:
    put(run_uri, "videos/test/msvd/one.avi", "videos/two.tar")
    library, root = Library(), f"{run_uri}/videos"

    def found(video: str) -> str:
        return library.locate(video, folder=f"{run_uri}/rows", root=root).removeprefix(f"{root}/")

    assert found("test/msvd/one") == found("test/msvd/one.mp4") == "test/msvd/one.avi"
    assert found("test/msvd/two.avi") == found("two") == "two.tar"
    assert found("/elsewhere/frames/actnet/two") == "two.tar"  # a path of the publisher's machine
    assert found("test/msvd/three") == "test/msvd/three"
    beside = library.locate("test/msvd/two", folder=root)  # without a root a path means itself
    assert beside == f"{root}/test/msvd/two"


def test_paths_and_uris_stand_for_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_clip(tmp_path / "a.mp4", 5)
    library = Library()
    assert library.locate(str(clip), folder="s3://nowhere/rows") == str(clip)
    assert library.locate(f"file://{clip}", folder="") == str(clip)
    assert library.locate("a", folder=f"file://{tmp_path}") == str(clip)
    monkeypatch.chdir(tmp_path)
    assert library.locate("a", folder="") == str(clip)


@pytest.mark.parametrize("run_uri", ["local", "moto"], indirect=True)
def test_frames_travel_from_every_store(run_uri: str, tmp_path: Path) -> None:
    for name, data in clip_frames(12, first=7).items():
        write_bytes(join(run_uri, "folder", name), data)
    open_store(run_uri).put(write_clip_tar(tmp_path / "packed.tar", 12, first=7), join(run_uri, "packed.tar"))
    library = Library()
    for video in ("folder", "packed"):
        with local_copy(library.locate(video, folder=run_uri)) as path:
            assert numbers_of(decode(path, frames=4).frames) == [7, 10, 14, 18]
            assert len(hash_clip(path)) == 64
    if "://" in run_uri:
        with pytest.raises(Missing), local_copy(join(run_uri, "absent.mp4")):
            pass


def test_the_identity_of_a_folder_changes_with_its_frames(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "clip", 4)

    def identity() -> str | None:
        return Library().identity(f"{folder}/")

    identities = [identity()]
    (folder / "notes.txt").write_text("of no account")
    assert identity() == identities[0]
    (folder / "c01_0004.jpeg").write_bytes(clip_frames(1, first=9)["c01_0001.jpeg"])
    identities.append(identity())
    (folder / "c01_0002.jpeg").unlink()
    identities.append(identity())
    (folder / "c01_0005.jpeg").write_bytes(b"")
    identities.append(identity())
    assert len(set(identities)) == 4
