"""The pyfunc flavour: a registered policy answers rows, its weights loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest

from isr_dpo.engines import hf
from isr_dpo.pyfunc import _load_pyfunc
from tests.tiny import make_policy


def test_the_weights_are_loaded_once_for_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from isr_dpo.data.world import draw

    draw(tmp_path / "world", seed=5, train=2, dev=6, test=6, seed_preferences=1)
    videos = sorted((tmp_path / "world" / "videos").glob("*.mp4"))[:2]
    model = _load_pyfunc(str(make_policy(tmp_path / "model")))
    loads: list[Path] = []
    load = hf.models.load
    monkeypatch.setattr(hf.models, "load", lambda folder, **options: (loads.append(folder), load(folder, **options))[1])
    table = {"video": [str(v) for v in videos], "question": ["what colour is the object ?"] * 2}
    answers = model.predict(table)
    assert len(loads) == 1
    rows = [{"video": [str(video)], "question": table["question"][:1]} for video in videos]
    assert answers == [_load_pyfunc(str(tmp_path / "model")).predict(row)[0] for row in rows]
