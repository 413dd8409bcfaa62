from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isr_dpo.scratch import YOUNG_SECONDS, scratch

HOLDING = """
import sys
from pathlib import Path
from isr_dpo.scratch import scratch
with scratch(Path(sys.argv[1])) as folder:
    (folder / "object").write_bytes(b"half")
    print(folder, flush=True)
    input()
"""


@pytest.fixture
def held(tmp_path: Path) -> tuple[subprocess.Popen[str], Path]:
    """Another process at work, and its folder, begun long ago."""
    command = [sys.executable, "-c", HOLDING, str(tmp_path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    folder = Path(other.stdout.readline().strip())
    long_ago = time.time() - 2 * YOUNG_SECONDS
    os.utime(folder, (long_ago, long_ago))
    return other, folder


def test_what_a_killed_process_left_goes_with_the_next_one(
    tmp_path: Path, held: tuple[subprocess.Popen[str], Path]
) -> None:
    other, theirs = held
    with scratch(tmp_path) as ours:
        assert ours != theirs
        assert (theirs / "object").exists(), "its process lives"
    other.kill()
    other.communicate()
    assert (theirs / "object").exists()
    with scratch(tmp_path) as ours:
        assert list(tmp_path.iterdir()) == [ours]
    assert not list(tmp_path.iterdir())


def test_a_folder_just_made_is_left_alone(tmp_path: Path) -> None:
    young = tmp_path / ".scratch-young"
    young.mkdir()
    with scratch(tmp_path):
        assert young.exists(), "its process may be about to lock it"


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), scratch(tmp_path) as folder:
        folder.write_bytes(b"half")
    assert not list(tmp_path.iterdir())
