"""`isr-dpo data fetch` as it is typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from archives import write_chunks, write_rows

from isr_dpo import cli


def test_rows_are_copied_beside_the_clips_where_that_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, rows = write_chunks(tmp_path / "source", (0, 1)), write_rows(tmp_path / "rows.jsonl", "c0", "c1")
    command = ["data", "fetch", str(source), str(tmp_path / "videos"), "--rows", str(rows)]
    assert cli.main(command) == 0
    assert not (tmp_path / "data").exists()
    assert cli.main([*command, "--rows-to", str(tmp_path / "data")]) == 0
    assert (tmp_path / "data" / "rows.jsonl").read_bytes() == Path(rows).read_bytes()
    assert "rows.jsonl: as " in capsys.readouterr().out
