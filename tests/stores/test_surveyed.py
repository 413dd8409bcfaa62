from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from isr_dpo.stores import surveyed
from isr_dpo.stores.local import UNDONE


def test_a_folder_that_goes_while_it_is_surveyed_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "going").mkdir()
    (tmp_path / "stays").mkdir()
    (tmp_path / "stays" / f"{UNDONE}put").write_bytes(b"half")
    (tmp_path / f"{UNDONE}deleted" / "below").mkdir(parents=True)
    (tmp_path / f"{UNDONE}deleted" / "below" / "file").write_bytes(b"whole")
    scandir = os.scandir

    def late(path: Any = ".") -> Any:
        if str(path).endswith(("going", "below")):
            shutil.rmtree(path, ignore_errors=True)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", late)
    found = {Path(upload.uri).name: upload.size for upload in surveyed.uploads(str(tmp_path))}
    assert found == {f"{UNDONE}put": 4, f"{UNDONE}deleted": 0}
