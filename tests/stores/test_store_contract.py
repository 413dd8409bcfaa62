"""What every store promises: a folder, moto's S3 server, a real Ceph gateway."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from isr_dpo.errors import RecipeError
from isr_dpo.stores import Exists, Missing, join, open_store, read_bytes, write_bytes


def test_what_is_put_is_got(run_uri: str, tmp_path: Path) -> None:
    for content in (b"", b"one line\n", bytes(range(256)) * 4000):
        (tmp_path / "source").write_bytes(content)
        open_store(run_uri).put(tmp_path / "source", join(run_uri, "a", "b", "object.bin"))
        open_store(run_uri).get(join(run_uri, "a", "b", "object.bin"), tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == content


def test_what_is_not_there_is_missing(run_uri: str, tmp_path: Path) -> None:
    write_bytes(join(run_uri, "folder", "object"), b"x")
    for name in ("nothing", "folder", "folder/object/below"):
        with pytest.raises(Missing):
            open_store(run_uri).get(join(run_uri, name), tmp_path / "copy")


def test_a_put_replaces_unless_it_must_create(run_uri: str) -> None:
    uri = join(run_uri, "object")
    write_bytes(uri, b"first", if_absent=True)
    with pytest.raises(Exists):
        write_bytes(uri, b"second", if_absent=True)
    assert read_bytes(uri) == b"first"
    write_bytes(uri, b"third")
    assert read_bytes(uri) == b"third"


def test_a_list_names_what_lies_below_and_nothing_beside(run_uri: str) -> None:
    for name, size in {"out/a": 1, "out/deep/b": 2, "output": 3, "out.txt": 4}.items():
        write_bytes(join(run_uri, name), b"x" * size)
    store = open_store(run_uri)
    assert store.list(join(run_uri, "out")) == {"a": 1, "deep/b": 2}
    assert store.list(join(run_uri, "out") + "/") == {"a": 1, "deep/b": 2}
    assert store.list(join(run_uri, "out", "a")) == {}
    assert store.list(join(run_uri, "nothing")) == {}


def test_a_delete_takes_an_object_or_all_below_and_nothing_beside(run_uri: str) -> None:
    names = {"out/a", "out/deep/b", "out/deep/c", "output"}
    for name in names:
        write_bytes(join(run_uri, name), b"x")
    store = open_store(run_uri)
    for name, left in {
        "nothing": names,
        "out/a": names - {"out/a"},
        "out/deep": {"output"},
        "out": {"output"},
        "output": set(),
    }.items():
        store.delete(join(run_uri, name))
        assert set(store.list(run_uri)) == left


@pytest.mark.parametrize("run_uri", ["moto", "ceph"], indirect=True)
def test_more_objects_than_a_page_are_listed_and_deleted(run_uri: str) -> None:
    names = {f"part-{i:05d}" for i in range(1003)}
    with ThreadPoolExecutor(8) as threads:  # one client, several threads
        list(threads.map(lambda name: write_bytes(join(run_uri, "out", name), b"x"), names))
    store = open_store(run_uri)
    assert set(store.list(join(run_uri, "out"))) == names
    store.delete(join(run_uri, "out"))
    assert store.list(run_uri) == {}


CREATE = """
import sys
from isr_dpo.stores import Exists, join, write_bytes
print("ready", flush=True)
sys.stdin.readline()
for name in range(25):
    try:
        write_bytes(join(sys.argv[1], str(name)), sys.argv[2].encode(), if_absent=True)
        print(name)
    except Exists:
        pass
"""


def test_of_two_racing_processes_one_creates(run_uri: str) -> None:
    racers = {
        name: subprocess.Popen(
            [sys.executable, "-c", CREATE, run_uri, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in ("red", "blue")
    }
    for racer in racers.values():
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers.values():
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = {name: set(racer.communicate(timeout=300)[0].split()) for name, racer in racers.items()}
    assert not won["red"] & won["blue"]
    assert won["red"] | won["blue"] == {str(i) for i in range(25)}
    for name, theirs in won.items():
        assert {read_bytes(join(run_uri, each)) for each in theirs} <= {name.encode()}


REPLACE = """
import sys
from isr_dpo.stores import write_bytes
for i in range(100000):
    write_bytes(sys.argv[1], bytes([i % 256]) * (1 << 20))
    print(i, flush=True)
"""


def test_a_reader_sees_a_whole_object_while_it_is_replaced(run_uri: str) -> None:
    uri = join(run_uri, "object")
    with subprocess.Popen([sys.executable, "-c", REPLACE, uri], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        seen, reads = set(), 0
        while reads < 30 or len(seen) < 2:  # on a busy machine the writer may be the slower one
            content = read_bytes(uri)
            assert len(content) == 1 << 20
            assert len(set(content)) == 1
            seen.add(content[0])
            reads += 1
            assert writer.poll() is None, "nothing was replaced meanwhile"
        writer.kill()
    assert set(open_store(run_uri).list(run_uri)) == {"object"}, "a killed put is listed"


def test_an_unknown_scheme_is_refused_with_those_accepted() -> None:
    with pytest.raises(RecipeError, match=r"ftp://host/run.*'ftp'.*file://, s3://"):
        open_store("ftp://host/run")
