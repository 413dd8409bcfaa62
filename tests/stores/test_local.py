import errno
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from isr_dpo.errors import StoreError
from isr_dpo.stores import join, open_store, read_bytes, write_bytes

PUT = """
import sys
from pathlib import Path
from isr_dpo.errors import StoreError
from isr_dpo.stores import open_store
try:
    open_store(sys.argv[2]).put(Path(sys.argv[1]), sys.argv[2])
except StoreError as error:
    print(error)
"""


@pytest.fixture
def four_mebibytes(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(bytes(4 << 20))
    return path


def test_relative_absolute_and_file_uris_name_the_same_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_bytes("run/object", b"x")
    for uri in ("run/object", str(tmp_path / "run" / "object"), f"file://{tmp_path}/run/object"):
        assert read_bytes(uri) == b"x"
        assert open_store(uri).list(uri.removesuffix("/object")) == {"object": 1}


def test_a_delete_prunes_the_folder_it_empties(tmp_path: Path) -> None:
    write_bytes(str(tmp_path / "run" / "out" / "object"), b"x")
    write_bytes(str(tmp_path / "run" / "other"), b"x")
    open_store(str(tmp_path)).delete(str(tmp_path / "run" / "out" / "object"))
    assert os.listdir(tmp_path / "run") == ["other"]


def test_a_delete_leaves_a_folder_that_was_not_there_when_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes(str(tmp_path / "out" / "object"), b"x")
    with monkeypatch.context() as before:
        before.setattr(Path, "is_dir", lambda _: False)
        open_store(str(tmp_path)).delete(str(tmp_path / "out"))
    assert read_bytes(str(tmp_path / "out" / "object")) == b"x"


def test_a_full_disk_is_named_and_leaves_the_old_object(tmp_path: Path, four_mebibytes: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    target = disk / "run" / "part-00000.jsonl"
    script = (
        f"mount -t tmpfs -o size=1m none {disk} && mkdir {disk}/run && echo old > {target} && "
        f"'{sys.executable}' -c \"$PUT\" {four_mebibytes} {target} && ls -A {disk}/run && cat {target}"
    )
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        env={**os.environ, "PUT": PUT},
        capture_output=True,
        text=True,
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"needs a file system of its own, in a user namespace: {done.stderr.strip()}")
    message, *left = done.stdout.splitlines()
    assert message.startswith(f"{target}: the disk is full: free some space")
    assert left == ["part-00000.jsonl", "old"], done.stderr


def test_a_file_above_the_limit_is_named_and_leaves_nothing(tmp_path: Path, four_mebibytes: Path) -> None:
    target = tmp_path / "run" / "part-00000.jsonl"
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({1 << 20}, {1 << 20}))\n"
    done = subprocess.run(
        [sys.executable, "-c", limit + PUT, str(four_mebibytes), str(target)], capture_output=True, text=True
    )
    assert done.stdout.startswith(f"{target}: the file is larger than"), done.stderr
    assert os.listdir(target.parent) == []


def test_a_fault_of_the_disk_as_late_as_fsync_leaves_nothing(
    tmp_path: Path, four_mebibytes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="the disk is full"):
        open_store("run").put(four_mebibytes, str(tmp_path / "run" / "object"))
    assert os.listdir(tmp_path / "run") == []


def test_what_a_killed_put_leaves_is_no_object_and_goes_with_its_folder(tmp_path: Path, four_mebibytes: Path) -> None:
    run = str(tmp_path / "run")
    killed = "import os, signal; os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n" + PUT
    done = subprocess.run([sys.executable, "-c", killed, str(four_mebibytes), join(run, "out", "object")])
    assert done.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path / "run" / "out")) == 1
    assert open_store(run).list(run) == {}
    open_store(run).delete(join(run, "out"))
    assert not (tmp_path / "run").exists()


def test_a_full_disk_on_the_reader_s_side_is_named(tmp_path: Path) -> None:
    write_bytes(str(tmp_path / "object"), b"x")
    with pytest.raises(StoreError, match="/dev/full: the disk is full"):
        open_store("run").get(str(tmp_path / "object"), Path("/dev/full"))


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StoreError, match=r"run/out/object: lies below a file.*--run-uri"):
        write_bytes(join(str(tmp_path / "run"), "out", "object"), b"x")
    with pytest.raises(StoreError, match=r"run/object: lies below a file.*--run-uri"):
        write_bytes(join(str(tmp_path / "run"), "object"), b"x")


def test_a_put_survives_a_folder_that_goes_between_two_looks_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, folder = os.mkdir, tmp_path / "out"

    def mkdir(path: Path, *mode: int) -> None:
        make(path, *mode)
        if Path(path) == folder:  # another made it first, and a third deleted it at once
            monkeypatch.undo()
            os.rmdir(path)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))

    monkeypatch.setattr(os, "mkdir", mkdir)
    write_bytes(str(folder / "object"), b"x")
    assert read_bytes(str(folder / "object")) == b"x"


def test_a_put_survives_others_who_delete_its_folder(tmp_path: Path) -> None:
    folder, putting, stop = str(tmp_path / "out"), threading.Event(), threading.Event()

    def delete() -> None:
        while not stop.is_set():
            putting.wait()  # once a put, however long it takes: none is disturbed for ever
            putting.clear()
            open_store(folder).delete(folder)

    with ThreadPoolExecutor(1) as other:
        deleting = other.submit(delete)
        try:
            for number in range(100):
                putting.set()
                write_bytes(join(folder, str(number)), b"content")
        finally:
            stop.set()
            putting.set()
        deleting.result()
    write_bytes(join(folder, "last"), b"content")
    assert read_bytes(join(folder, "last")) == b"content"
