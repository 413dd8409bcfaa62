"""The decoding process: same frames, and a crash or a hang costs one clip, by name."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from clips import write_clip

from isr_dpo.data.decoder import Decoder
from isr_dpo.data.video import Unreadable, decode
from isr_dpo.errors import IsrDpoError

STAND_IN = """
import json, os, signal, sys, time
print("ready", flush=True)
for line in sys.stdin:
    path = json.loads(line)["path"]
    if path == "crash": os.kill(os.getpid(), signal.SIGSEGV)
    if path == "hang": time.sleep(60)
    if path == "half":
        print('{"shape": [1, 9, 9, 3], "indices": [0], "clip_frames": 1}', flush=True)
        os._exit(3)
    print('{"reason": "stand-in"}', flush=True)
"""

HANGING = """
import time
from types import SimpleNamespace
logging = SimpleNamespace(QUIET=0, set_level=print)
cpu = int
def VideoReader(*_, **__):
    open("hanging", "x").close()
    time.sleep(600)
"""
"""In decord's place."""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoder]:
    (tmp_path / "stand_in_decoder.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    decoder = Decoder(timeout_seconds=1.5, module="stand_in_decoder")
    yield decoder
    decoder.close()


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    decoder = Decoder()
    yield decoder
    decoder.close()


def test_the_process_gives_what_decode_gives(tmp_path: Path, decoder: Decoder) -> None:
    path = write_clip(tmp_path / "a clip with spaces and ümlauts.mp4")
    here, there = decode(path, frames=8), decoder.decode(path, frames=8)
    assert np.array_equal(here.frames, there.frames)
    assert here[1:] == there[1:]


def test_a_bad_file_leaves_the_process_usable(tmp_path: Path, decoder: Decoder) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    with pytest.raises(Unreadable, match="not a readable video"):
        decoder.decode(tmp_path / "bad.mp4", frames=8)
    assert decoder.decode(write_clip(tmp_path / "good.mp4"), frames=2).clip_frames == 40


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("crash", r"the decoder crashed \(SIGSEGV\)"),
        ("half", r"the decoder crashed \(exit code 3\)"),
        ("hang", r"the decoder did not end within 1.5 s"),
    ],
)
def test_a_lost_process_is_named_and_replaced(stand_in: Decoder, path: str, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        stand_in.decode(path, frames=1)
    with pytest.raises(Unreadable, match="stand-in"):
        stand_in.decode("another", frames=1)


def test_a_decoder_that_cannot_start_is_no_bad_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "decord.py").write_text("raise ImportError('libnothing.so: cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(IsrDpoError, match=r"does not start: .*libnothing.so.*pip install 'isr-dpo\[train\]'"):
        Decoder().decode(tmp_path / "any.mp4", frames=1)


@pytest.mark.parametrize("then", ["input()", "d.decode('clip.mp4', frames=1)"])
def test_a_killed_parent_leaves_no_decoder_behind(then: str, tmp_path: Path) -> None:
    (tmp_path / "decord.py").write_text(HANGING)
    write_clip(tmp_path / "clip.mp4")
    code = f"from isr_dpo.data.decoder import Decoder; d = Decoder(); p = d._process = d._start(); print(p.pid); {then}"
    command = [sys.executable, "-u", "-c", code]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path, env=environment)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    until(lambda: then == "input()" or (tmp_path / "hanging").exists(), "it does not decode")
    parent.kill()
    parent.communicate()
    until(lambda: not _runs(pid), "the decoder outlives its parent")


def until(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # a zombie waits for a parent that reaps it


def test_closing_ends_the_process(tmp_path: Path) -> None:
    decoder = Decoder()
    decoder.decode(write_clip(tmp_path / "clip.mp4"), frames=1)
    assert decoder._process is not None
    pid = decoder._process.pid
    decoder.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
