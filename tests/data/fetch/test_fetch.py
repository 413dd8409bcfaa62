"""The clips that rows name come to the store, once, whatever happens on the way."""

from __future__ import annotations

import gzip
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from archives import chunk, frames_of, tar_of, write_chunks, write_rows
from clips import numbers_of

from isr_dpo.data import fetch as fetching
from isr_dpo.data.clips import Library, local_copy
from isr_dpo.data.fetch import Fetched, fetch
from isr_dpo.data.video import decode
from isr_dpo.errors import CorruptOutput, DataError, OutsideError, RecipeError, StoreError
from isr_dpo.stores import join, open_store, read_bytes, write_bytes
from tests.servers.file_server import Asked, Manner, file_server


def states(fetched: Fetched) -> list[str]:
    return [outcome.state for outcome in fetched.outcomes]


def stored(dest: str) -> list[str]:
    """The clips there."""
    return [name for name in open_store(dest).list(dest) if "/" not in name and name != "missing.jsonl"]


def missing(dest: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_bytes(join(dest, "missing.jsonl")).splitlines()]


def shows(dest: str, video: str) -> list[int]:
    with local_copy(Library().locate(video, folder="rows", root=dest)) as path:
        return numbers_of(decode(path, frames=4).frames)


@pytest.fixture
def puts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the clips stored, in order, on local stores."""
    from isr_dpo.stores.local import LocalStore

    names: list[str] = []
    real = LocalStore.put

    def put(self: LocalStore, path: Path, uri: str, *, if_absent: bool = False) -> None:
        if not uri.endswith((".json", ".jsonl")):
            names.append(uri.rpartition("/")[2])
        real(self, path, uri, if_absent=if_absent)

    monkeypatch.setattr(LocalStore, "put", put)
    return names


def test_the_clips_that_rows_name_come_to_every_store(tmp_path: Path, run_uri: str) -> None:
    source = write_chunks(tmp_path / "train_300k", (0, 1, 2), (3, 4, 5))
    rows = write_rows(tmp_path / "rows.jsonl", "c1", "c1", "c4", "test/x/c5", "c9")
    fetched = fetch(str(source), run_uri, rows=[rows])
    assert states(fetched) == ["read", "read"]
    assert [outcome.clips for outcome in fetched.outcomes] == [1, 2]
    assert stored(run_uri) == ["c1.tar", "c4.tar", "c5.tar"]
    assert shows(run_uri, "test/x/c5") == [50, 51, 52, 53]
    assert (fetched.wanted, fetched.missing) == (4, ("c9",))
    assert missing(run_uri) == [{"clip": "c9", "video": "c9", "where": f"{rows}:5", "rows": 1}]


def test_the_rows_may_lie_in_the_store_and_the_videos_be_raw(tmp_path: Path) -> None:
    source = tmp_path / "msvd.tar"
    source.write_bytes(tar_of({"msvd/a.avi": b"one", "msvd/b.avi": b"two"}))
    dest = str(tmp_path / "dest")
    fetched = fetch(str(source), dest, rows=[write_rows(tmp_path / "rows.jsonl", "test/msvd/b.avi")])
    assert stored(dest) == ["b.avi"]
    assert fetched.missing == ()
    assert missing(dest) == []


def test_a_second_call_reads_nothing(tmp_path: Path, puts: list[str]) -> None:
    source, dest = write_chunks(tmp_path / "source", (0, 1), (2, 3)), str(tmp_path / "dest")
    rows = write_rows(tmp_path / "rows.jsonl", "c0", "c3", "c9")
    fetch(str(source), dest, rows=[rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching.archive, "clips", lambda *_, **__: pytest.fail("a chunk is read again"))
        again = fetch(str(source), dest, rows=[rows])
    assert states(again) == ["stands", "stands"]
    assert again.missing == ("c9",)
    assert sorted(puts) == ["c0.tar", "c3.tar"]


def test_more_rows_are_read_for_and_what_stands_is_not_stored_again(tmp_path: Path, puts: list[str]) -> None:
    source, dest = write_chunks(tmp_path / "source", (0, 1, 2, 3)), str(tmp_path / "dest")
    fetch(str(source), dest, rows=[write_rows(tmp_path / "few.jsonl", "c0", "c1")])
    fetched = fetch(str(source), dest, rows=[write_rows(tmp_path / "more.jsonl", "c0", "c1", "c3")])
    assert puts == ["c0.tar", "c1.tar", "c3.tar"]
    assert (fetched.outcomes[0].clips, fetched.outcomes[0].stored) == (3, 1)


def test_nothing_is_read_where_all_clips_stand(tmp_path: Path) -> None:
    source, dest = write_chunks(tmp_path / "source", (0, 1), (2,)), tmp_path / "dest"
    for name in ("c0.mp4", "c2/c01_0001.jpeg"):
        write_bytes(join(str(dest), name), b"x")
    fetched = fetch(str(source), str(dest), rows=[write_rows(tmp_path / "rows.jsonl", "c0", "c2")])
    assert states(fetched) == ["not needed", "not needed"]


def test_a_deleted_clip_is_brought_again(tmp_path: Path, puts: list[str]) -> None:
    source, dest = write_chunks(tmp_path / "source", (0, 1)), tmp_path / "dest"
    rows = write_rows(tmp_path / "rows.jsonl", "c0", "c1")
    fetch(str(source), str(dest), rows=[rows])
    (dest / "c0.tar").unlink()
    assert fetch(str(source), str(dest), rows=[rows]).missing == ()
    assert puts == ["c0.tar", "c1.tar", "c0.tar"]


def test_a_changed_chunk_replaces_its_clips_also_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, dest = write_chunks(tmp_path / "source", (0, 1)), str(tmp_path / "dest")
    rows = [write_rows(tmp_path / "rows.jsonl", "c0", "c1")]
    fetch(str(source), dest, rows=rows)
    changed = {name.replace("c7", "c0").replace("c8", "c1"): data for name, data in frames_of(7, 8).items()}
    (source / "chunk_0.tar.gz").write_bytes(tar_of(changed))
    with monkeypatch.context() as patch:
        patch.setattr(fetching.archive, "_check_end", lambda *_: None)
        patch.setattr(fetching.archive._Packing, "finish", lambda self: (_ for _ in ()).throw(StoreError("killed")))
        with pytest.raises(StoreError, match="killed"):
            fetch(str(source), dest, rows=rows)
    assert shows(dest, "c0") == [0, 1, 2, 3]
    fetch(str(source), dest, rows=rows)
    assert (shows(dest, "c0"), shows(dest, "c1")) == ([70, 71, 72, 73], [80, 81, 82, 83])


def test_a_bad_chunk_is_named_and_costs_the_others_nothing(tmp_path: Path) -> None:
    source, dest = write_chunks(tmp_path / "source", (0,), (1,), (2,)), str(tmp_path / "dest")
    broken = source / "chunk_1.tar.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-100])
    rows = [write_rows(tmp_path / "rows.jsonl", "c0", "c1", "c2")]
    fetched = fetch(str(source), dest, rows=rows, workers=3)
    assert states(fetched) == ["read", "failed", "read"]
    assert "chunk_1.tar.gz: not a whole tar" in str(fetched.outcomes[1].failure)
    assert stored(dest) == ["c0.tar", "c2.tar"]
    broken.write_bytes(whole)
    mended = fetch(str(source), dest, rows=rows)
    assert states(mended)[1] == "read"
    assert mended.missing == ()


def test_a_clip_of_an_archive_that_breaks_off_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    source, dest = tmp_path / "source", str(tmp_path / "dest")
    source.mkdir()
    plain = tar_of(frames_of(0, 1))
    (source / "chunk_0.tar").write_bytes(plain[: plain.index(b"c1/c01_0003")])
    fetched = fetch(str(source), dest, rows=[write_rows(tmp_path / "rows.jsonl", "c0", "c1")])
    assert states(fetched) == ["failed"]
    assert stored(dest) == ["c0.tar"]


def test_a_chunk_whose_checksum_is_wrong_is_replaced_once_mended(tmp_path: Path) -> None:
    """Images hardly compress: a damaged one comes out of gzip without an error, and only the end tells."""
    source, dest = tmp_path / "source", str(tmp_path / "dest")
    source.mkdir()
    whole = gzip.compress(tar_of(frames_of(*range(8), count=60)), compresslevel=0)
    damaged = bytearray(whole)
    damaged[whole.index(b"c0/c01_0002") + 900] ^= 1
    (source / "chunk_0.tar.gz").write_bytes(damaged)
    rows = [write_rows(tmp_path / "rows.jsonl", "c0", "c1")]
    fetched = fetch(str(source), dest, rows=rows)
    assert "not a whole tar" in str(fetched.outcomes[0].failure)
    before = read_bytes(join(dest, "c0.tar"))
    assert states(fetch(str(source), dest, rows=rows)) == ["failed"]
    (source / "chunk_0.tar.gz").write_bytes(whole)
    mended = fetch(str(source), dest, rows=rows)
    assert (states(mended), mended.outcomes[0].stored) == (["read"], 2)
    assert read_bytes(join(dest, "c0.tar")) != before
    assert shows(dest, "c0") == [0, 19, 39, 59]
    assert states(fetch(str(source), dest, rows=rows)) == ["stands"]


def test_half_a_clip_does_not_stay_where_the_other_half_lies_elsewhere_in_the_archive(tmp_path: Path) -> None:
    source, dest = tmp_path / "source", str(tmp_path / "dest")
    source.mkdir()
    members = list(frames_of(0, 1).items())
    scattered = dict([*members[:2], *members[4:], *members[2:4]])  # two frames of c0, all of c1, two more of c0
    (source / "chunk_0.tar").write_bytes(tar_of(scattered))
    rows = [write_rows(tmp_path / "rows.jsonl", "c0", "c1")]
    for _ in range(2):  # also where it was stored before it was known
        fetched = fetch(str(source), dest, rows=rows)
        assert "clip 'c0' lies in two places" in str(fetched.outcomes[0].failure)
        assert stored(dest) == ["c1.tar"]
        assert fetched.missing == ("c0",)
        write_bytes(join(dest, "c0.tar"), b"half")


def test_a_store_that_refuses_stops_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_chunks(tmp_path / "source", *[(i,) for i in range(6)])
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=r"file.*lies below a file"):
        fetch(str(source), str(tmp_path / "file" / "dest"), rows=[write_rows(tmp_path / "rows.jsonl", "c0")])


@pytest.mark.parametrize("run_uri", ["moto"], indirect=True)
def test_a_wrong_bucket_is_named(tmp_path: Path, run_uri: str) -> None:
    source = write_chunks(tmp_path / "source", (0,))
    with pytest.raises(StoreError, match="no bucket 'elsewhere'"):
        fetch(str(source), "s3://elsewhere/videos", rows=[write_rows(tmp_path / "rows.jsonl", "c0")])


def test_rows_are_named_by_file_and_line(tmp_path: Path) -> None:
    source, dest = str(write_chunks(tmp_path / "source", (0,))), str(tmp_path / "dest")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"video": "c0"}\n{"id": 3}\n')
    with pytest.raises(DataError, match=r"bad.jsonl:2: not a Named row: video: Field required"):
        fetch(source, dest, rows=[str(bad)])
    with pytest.raises(DataError, match=r"two.jsonl:2: 'b/x' and 'a/x' \(.*two.jsonl:1\) have one clip id, 'x'"):
        fetch(source, dest, rows=[write_rows(tmp_path / "two.jsonl", "a/x", "b/x")])
    with pytest.raises(DataError, match=r"dots.jsonl:1: '..' names no clip"):
        fetch(source, dest, rows=[write_rows(tmp_path / "dots.jsonl", "..")])
    with pytest.raises(DataError, match=r"--rows: there is no .*absent.jsonl"):
        fetch(source, dest, rows=[str(tmp_path / "absent.jsonl")])


def test_a_clip_of_another_set_is_not_taken_for_the_one_wanted(tmp_path: Path) -> None:
    source, dest = str(write_chunks(tmp_path / "source", (0, 1))), str(tmp_path / "dest")
    fetch(source, dest, rows=[write_rows(tmp_path / "msvd.jsonl", "test/msvd/c0")])
    fetch(source, dest, rows=[write_rows(tmp_path / "bare.jsonl", "c0", "c1")])
    with pytest.raises(DataError, match=r"tgif.jsonl:2: 'test/tgif/c0' has the clip id 'c0' of 'test/msvd/c0'"):
        fetch(source, dest, rows=[write_rows(tmp_path / "tgif.jsonl", "test/tgif/c3", "test/tgif/c0")])


def test_a_source_is_checked_before_anything_is_read(tmp_path: Path) -> None:
    rows = [write_rows(tmp_path / "rows.jsonl", "c0")]
    source = write_chunks(tmp_path / "source", (0,), (1,))
    (tmp_path / "empty").mkdir()
    cases: list[tuple[str, list[str], type[Exception], str]] = [
        (str(tmp_path / "absent"), [], DataError, "absent: there is nothing; accepted: a folder"),
        (str(tmp_path / "empty"), [], DataError, "empty: has no archive"),
        (str(source), ["chunk_7.tar.gz"], DataError, r"has no chunk_7.tar.gz; there is chunk_0.tar.gz, chunk_1.tar.gz"),
        ("ftp://server/x", [], RecipeError, "ftp://server/x: no source of archives"),
        ("https://server/folder/", [], RecipeError, "an HTTP server lists nothing: name the archives"),
        ("https://server/a.tar", ["b.tar"], RecipeError, "--chunks are names in a folder, whose URL ends in /"),
        ("hf://models/x", [], RecipeError, "written as hf://datasets/"),
    ]
    for place, chunks, error, message in cases:
        with pytest.raises(error, match=message):
            fetch(place, str(tmp_path / "dest"), rows=rows, chunks=chunks)


def test_a_strange_file_among_the_marks_is_named(tmp_path: Path) -> None:
    source, dest = write_chunks(tmp_path / "source", (0,)), tmp_path / "dest"
    rows = [write_rows(tmp_path / "rows.jsonl", "c0")]
    fetch(str(source), str(dest), rows=rows)
    (mark,) = (dest / ".fetch").iterdir()
    mark.write_text("{}")
    with pytest.raises(CorruptOutput, match="not a mark of a chunk; delete it"):
        fetch(str(source), str(dest), rows=rows)


@pytest.mark.parametrize("run_uri", ["moto", "ceph"], indirect=True)
def test_archives_may_lie_in_a_bucket(tmp_path: Path, run_uri: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for number, clips in enumerate([(0, 1), (2, 3)]):
        write_bytes(join(run_uri, "source", f"chunk_{number}.tar.gz"), chunk(*clips))
    rows, dest = [write_rows(tmp_path / "rows.jsonl", "c0", "c3")], str(tmp_path / "dest")
    assert states(fetch(join(run_uri, "source"), dest, rows=rows)) == ["read", "read"]
    assert stored(dest) == ["c0.tar", "c3.tar"]
    again = fetch(join(run_uri, "source/"), dest, rows=rows, chunks=["chunk_1.tar.gz"])
    assert states(again) == ["stands"]
    one = write_rows(tmp_path / "one.jsonl", "c1")
    assert stored_by(fetch(join(run_uri, "source", "chunk_0.tar.gz"), dest, rows=[one])) == 1
    with pytest.raises(DataError, match="has no archive"):
        fetch(join(run_uri, "elsewhere"), dest, rows=rows)
    absent = fetch(join(run_uri, "absent.tar"), str(tmp_path / "other"), rows=rows).outcomes[0].failure
    assert f"{run_uri}/absent.tar: there is no such file" in str(absent)
    marks = "".join(path.read_text() for path in (tmp_path / "dest" / ".fetch").iterdir())
    assert f'"{run_uri}/source/chunk_0.tar.gz"' in marks
    assert "Signature" not in marks + caplog.text


def stored_by(fetched: Fetched) -> int:
    return sum(outcome.stored for outcome in fetched.outcomes)


def chunks_on_server() -> dict[str, bytes]:
    return {f"/train_300k/chunk_{i}.tar.gz": chunk(2 * i, 2 * i + 1, count=30) for i in range(3)}


def test_chunks_come_from_a_server_that_cuts_and_fails(tmp_path: Path) -> None:
    def manner(asked: Asked, n: int) -> Manner:
        if asked.path.endswith("_0.tar.gz"):
            return Manner(cut=20_000 if n < 3 else None)
        return Manner(status=500) if n == 0 else Manner()

    rows, dest = [write_rows(tmp_path / "rows.jsonl", "c0", "c3", "c4")], str(tmp_path / "dest")
    with file_server(chunks_on_server(), manner) as server:
        fetched = fetch(f"{server.url}/train_300k/", dest, rows=rows, chunks=["chunk_{0..2}.tar.gz"])
        assert states(fetched) == ["read"] * 3
        assert stored(dest) == ["c0.tar", "c3.tar", "c4.tar"]
        assert shows(dest, "c3")[0] == 30
        asked = len(server.asked)
        assert (
            states(fetch(f"{server.url}/train_300k/", dest, rows=rows, chunks=["chunk_{0..2}.tar.gz"]))
            == ["stands"] * 3
        )
        assert len(server.asked) == asked + 3  # what each chunk is now


def test_a_list_of_urls_keeps_signatures_to_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows, dest = [write_rows(tmp_path / "rows.jsonl", "c0", "c9")], tmp_path / "dest"
    caplog.set_level(logging.INFO)
    with file_server(chunks_on_server(), lambda a, n: Manner(status=403) if "_1" in a.path else Manner()) as server:
        urls = [f"{server.url}{path}?X-Signature=hush" for path in chunks_on_server()]
        (tmp_path / "urls.txt").write_text("\n".join(urls))
        with pytest.raises(StoreError) as caught:
            fetch(str(tmp_path / "urls.txt"), str(dest), rows=rows)
        fetch(str(tmp_path / "urls.txt"), str(dest), rows=rows, chunks=["chunk_0.tar.gz"])
    marks = "".join(path.read_text() for path in (dest / ".fetch").iterdir())
    assert "chunk_0.tar.gz" in marks
    assert "hush" not in marks + caplog.text + str(caught.value)


def test_a_server_that_stays_away_fails_its_chunk_to_be_tried_again(tmp_path: Path) -> None:
    rows, dest = [write_rows(tmp_path / "rows.jsonl", "c0", "c2")], str(tmp_path / "dest")
    with file_server(chunks_on_server(), lambda a, n: Manner(status=503) if "_1" in a.path else Manner()) as server:
        fetched = fetch(f"{server.url}/train_300k/", dest, rows=rows, chunks=["chunk_{0..1}.tar.gz"])
    assert states(fetched) == ["read", "failed"]
    assert isinstance(fetched.outcomes[1].failure, OutsideError)


COMMAND = [sys.executable, "-m", "isr_dpo.cli", "data", "fetch"]


@pytest.mark.parametrize("run_uri", ["local", "moto"], indirect=True)
def test_a_fetch_killed_again_and_again_ends_with_every_clip_stored_once(tmp_path: Path, run_uri: str) -> None:
    """The server holds it up where it is to be killed: in mid-archive, after some more clips each time."""
    clips = 16
    members = frames_of(*range(clips), count=20)
    rows = write_rows(tmp_path / "rows.jsonl", *(f"c{i}" for i in range(clips)), "absent")
    goals: list[int] = []

    def hold(asked: Asked, n: int) -> Manner:
        before = list(goals)
        while before and goals == before and len(stored(run_uri)) >= before[0]:
            time.sleep(0.02)
        return Manner(cut=100_000)

    with file_server({"/chunk_0.tar": tar_of(members)}, hold) as server:
        command = [*COMMAND, f"{server.url}/chunk_0.tar", run_uri, "--rows", rows]
        versions: dict[str, set[str]] = {}
        for goal in (2, 9):
            goals[:] = [goal]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while len(stored(run_uri)) < goal:
                assert process.poll() is None, "it ended before it was killed"
                time.sleep(0.02)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            for name in stored(run_uri):
                versions.setdefault(name, set()).add(_version(run_uri, name))
        goals.clear()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "1 of 17 clips are in none of the chunks (absent)" in done.stderr
    assert "16 of 17 clips are there, 1 are missing" in done.stdout
    assert stored(run_uri) == sorted(f"c{i}.tar" for i in range(clips))
    for name in stored(run_uri):
        versions.setdefault(name, set()).add(_version(run_uri, name))
    assert all(len(each) == 1 for each in versions.values()), "a clip that stood was stored again"
    assert [row["clip"] for row in missing(run_uri)] == ["absent"]
    for i in (0, 7, clips - 1):
        assert shows(run_uri, f"c{i}")[0] == 10 * i


def _version(uri: str, name: str) -> str:
    """Changes whenever the object is written."""
    if "://" not in uri:
        return str((Path(uri) / name).stat().st_mtime_ns)
    from isr_dpo.stores.s3 import client

    bucket, _, key = join(uri, name).removeprefix("s3://").partition("/")
    return str(client().head_object(Bucket=bucket, Key=key)["LastModified"].timestamp())


def test_exit_codes_say_what_helps(tmp_path: Path) -> None:
    from isr_dpo.cli import main

    source, dest = str(write_chunks(tmp_path / "source", (0,))), str(tmp_path / "dest")
    rows = write_rows(tmp_path / "rows.jsonl", "c0", "c9")
    assert main(["data", "fetch", source, dest, "--rows", rows]) == 3
    assert main(["data", "fetch", source, dest, "--rows", rows, "--allow-missing"]) == 0
    with file_server({"/a.tar": b""}, lambda asked, n: Manner(status=503)) as server:
        assert main(["data", "fetch", f"{server.url}/a.tar", dest, "--rows", rows, "--allow-missing"]) == 8
    assert main(["data", "fetch", f"{source}/../absent", dest, "--rows", rows]) == 3


def test_fetching_loads_nothing_heavy() -> None:
    code = (
        "import sys; import isr_dpo.data.fetch, isr_dpo.data.fetch.chunks, isr_dpo.cli\n"
        "heavy = {'torch', 'huggingface_hub', 'transformers', 'decord', 'av', 'PIL', 'mlflow', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("run_uri", ["local", "moto"], indirect=True)
def test_what_was_fetched_is_what_a_run_reads(tmp_path: Path, run_uri: str) -> None:
    from isr_dpo import config
    from isr_dpo.data.sources import read_sources

    source = write_chunks(tmp_path / "source", (0, 1), (2,))
    (tmp_path / "source" / "raw.tar").write_bytes(tar_of({"x/v9.avi": b"video"}))
    rows = write_rows(tmp_path / "rows.jsonl", "c0", "test/x/c2", "v9", "gone")
    fetch(str(source), run_uri, rows=[rows])
    sources = read_sources(config.Data(train=rows, videos=run_uri))
    assert {video: at.removeprefix(f"{run_uri}/") for video, at in sources.videos.items()} == {
        "c0": "c0.tar",
        "gone": "gone",
        "test/x/c2": "c2.tar",
        "v9": "v9.avi",
    }
    assert [video for video, identity in sources.identities.items() if identity is None] == ["gone"]
