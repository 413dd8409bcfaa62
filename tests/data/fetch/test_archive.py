"""A tar is read as a stream, a clip at a time; what is wrong with it is named, and never taken for its end."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from collections.abc import Collection
from pathlib import Path

import pytest
from archives import chunk, frames_of, tar_of
from clips import numbers_of

from isr_dpo.data.fetch import archive
from isr_dpo.data.video import decode
from isr_dpo.errors import DataError, StoreError


class Raw(io.RawIOBase):
    """Forward only, in odd pieces."""

    def __init__(self, content: bytes) -> None:
        self._stream = io.BytesIO(content)
        self._draws = random.Random(0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        content = self._stream.read(self._draws.randint(1, min(len(buffer), 3000)))
        buffer[: len(content)] = content
        return len(content)


def unpack(content: bytes, scratch: Path, wanted: Collection[str] = ("c1", "c3")) -> dict[str, bytes]:
    """Name in the store -> content."""
    packed = archive.clips(Raw(content), place="chunk_0", wanted=wanted, scratch=scratch)
    return {clip.name: clip.path.read_bytes() for clip in packed}


@pytest.mark.parametrize("zipped", [True, False])
def test_wanted_clips_are_packed_whole_each_in_a_tar(tmp_path: Path, zipped: bool) -> None:
    content = tar_of(frames_of(0, 1, 2, 3, under="./train_300k/"))
    found = unpack(gzip.compress(content) if zipped else content, tmp_path)
    assert list(found) == ["c1.tar", "c3.tar"]
    for name, first in (("c1.tar", 10), ("c3.tar", 30)):
        path = tmp_path / "again" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(found[name])
        assert numbers_of(decode(path, frames=4).frames) == [first, first + 1, first + 2, first + 3]
        with tarfile.open(path) as tar:
            assert tar.getnames()[0] == f"{name[:2]}/c01_0001.jpeg"


def test_the_same_frames_give_the_same_bytes_whoever_packed_them(tmp_path: Path) -> None:
    dated = [tarfile.TarInfo("x/c1/c01_0001.jpeg"), tarfile.TarInfo("x/c1/c01_0002.jpeg")]
    for number, member in enumerate(dated):
        member.size, member.mtime, member.uname, member.mode = 10, 99 + number, "somebody", 0o777
    plain = {f"c1/{name}": bytes(10) for name in ("c01_0001.jpeg", "._c01_0001.jpeg", "notes.txt", "c01_0002.jpeg")}
    assert unpack(tar_of(dated), tmp_path) == unpack(tar_of(plain), tmp_path)


def test_raw_videos_keep_their_suffix_and_other_files_are_left(tmp_path: Path) -> None:
    members = {
        "msvd/c1.avi": b"video",
        "msvd/c2.avi": b"no",
        "msvd/c3.txt": b"no",
        "c3.MP4": b"another",
        "c1": b"no",
        "._c1.avi": b"",
    }
    assert unpack(tar_of(members), tmp_path) == {"c1.avi": b"video", "c3.mp4": b"another"}


def test_folders_and_empty_archives_are_no_fault(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("train/c1")
    folder.type = tarfile.DIRTYPE
    assert unpack(tar_of([folder]), tmp_path) == {}
    assert unpack(tar_of({}), tmp_path) == {}


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("../c1/c01_0001.jpeg", tarfile.REGTYPE, "'../c1/c01_0001.jpeg' leaves the archive's folder; refused"),
        ("a/../../c1/c01_0001.jpeg", tarfile.REGTYPE, "leaves the archive's folder"),
        ("/c1/c01_0001.jpeg", tarfile.REGTYPE, "leaves the archive's folder"),
        ("c1/c01_0001.jpeg", tarfile.SYMTYPE, "is a link or a device; refused"),
        ("c1/c01_0001.jpeg", tarfile.LNKTYPE, "is a link or a device; refused"),
        ("c1/c01_0001.jpeg", tarfile.CHRTYPE, "is a link or a device; refused"),
        ("c1/c01_0001.jpeg", tarfile.FIFOTYPE, "is a link or a device; refused"),
    ],
)
def test_members_that_could_do_harm_are_refused(tmp_path: Path, name: str, kind: bytes, message: str) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    with pytest.raises(DataError, match=f"chunk_0: member .*{message}"):
        unpack(tar_of([member]), tmp_path)


def damaged() -> dict[str, bytes]:
    whole, plain = chunk(0, 1, 2, 3), tar_of(frames_of(0, 1, 2, 3))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    header = bytearray(plain)
    end_of_c1 = plain.index(b"c2/c01_0001")
    header[end_of_c1 : end_of_c1 + 40] = b"?" * 40
    long_header = tarfile.TarInfo("x")
    long_header.type, long_header.size = tarfile.XHDTYPE, 4 << 20
    return {
        "nothing": b"",
        "a page": b"<html>not found</html>" * 100,
        "a gzipped page": gzip.compress(b"<html>not found</html>" * 100),
        "cut in the gzip": whole[: len(whole) // 2],
        "cut before the checksum": whole[:-4],
        "a flipped byte": bytes(flipped),
        "a wrong checksum": whole[:-8] + bytes(8),
        "cut between members": plain[: plain.index(b"c3/c01_0001")],
        "cut in a header": plain[: plain.index(b"c3/c01_0001") + 100],
        "cut in a frame": plain[: plain.index(b"c3/c01_0001") + 600],
        "a damaged header": bytes(header),
        "a header that fills the memory": tar_of([long_header]),
        "an archive after the end": plain + plain,
    }


@pytest.mark.parametrize("what", damaged())
def test_a_damaged_or_cut_archive_is_named(tmp_path: Path, what: str) -> None:
    with pytest.raises(DataError, match=r"^chunk_0: (not a whole tar or tar.gz|goes on after the archive's end)"):
        unpack(damaged()[what], tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_wherever_an_archive_is_cut_it_is_noticed_and_no_clip_is_less_than_whole(tmp_path: Path, zipped: bool) -> None:
    plain = tar_of({f"c{clip}/c01_000{i}.jpeg": bytes([clip, i]) * 300 for clip in range(4) for i in range(2)})
    members_end = len(plain.rstrip(b"\0"))
    content = gzip.compress(plain) if zipped else plain
    whole = unpack(content, tmp_path, wanted=[f"c{i}" for i in range(4)])
    for length in range(0, len(content) if zipped else members_end, 1 if zipped else 61):
        found: dict[str, bytes] = {}
        with pytest.raises(DataError, match="chunk_0: not a whole tar"):
            _unpack_into(found, content[:length], tmp_path)
        assert found.items() <= whole.items()


def _unpack_into(found: dict[str, bytes], content: bytes, scratch: Path) -> None:
    for clip in archive.clips(Raw(content), place="chunk_0", wanted={"c0", "c1", "c2", "c3"}, scratch=scratch):
        found[clip.name] = clip.path.read_bytes()


def test_a_clip_in_two_places_is_refused(tmp_path: Path) -> None:
    members = frames_of(1, count=2, under="a/") | frames_of(2) | frames_of(1, count=2, under="b/")
    with pytest.raises(DataError, match="chunk_0: clip 'c1' lies in two places"):
        unpack(tar_of(members), tmp_path)
    assert unpack(tar_of(members), tmp_path, wanted=["c2"]).keys() == {"c2.tar"}


def test_a_clip_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_CLIP_BYTES", 2000)
    with pytest.raises(DataError, match="chunk_0: clip 'c1' has more than"):
        unpack(tar_of({f"c1/{i}.jpeg": bytes(900) for i in range(3)}), tmp_path)
    with pytest.raises(DataError, match="chunk_0: clip 'c3' has more than"):
        unpack(tar_of({"c3.mp4": bytes(2001)}), tmp_path)


def test_no_space_for_the_clip_in_hand_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"TMPDIR names another place"):
        unpack(chunk(1), tmp_path / "absent")


def test_members_are_forgotten_as_they_are_read(tmp_path: Path) -> None:
    held: list[int] = []
    members = tar_of({f"c{i}/c01_0001.jpeg": b"x" for i in range(500)})
    real = tarfile.TarFile.next

    def watched(self: tarfile.TarFile) -> tarfile.TarInfo | None:
        held.append(len(self.members))  # type: ignore[attr-defined]
        return real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tarfile.TarFile, "next", watched)
        assert unpack(members, tmp_path, wanted=["c499"]).keys() == {"c499.tar"}
    assert len(held) > 500
    assert max(held) <= 1
