"""The pyfunc flavour: a registered policy answers rows about videos, its weights loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest

from isr_dpo import registry
from isr_dpo.engines import hf
from isr_dpo.mlflow_client import open_client
from isr_dpo.pyfunc import NAME, _load_pyfunc, mlmodel_file
from tests.registry.registered import RegisteredRun
from tests.servers.mlflow_server import fresh_database
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


def test_the_champion_of_the_registry_answers_about_a_video(tmp_path: Path) -> None:
    import mlflow

    from isr_dpo.data.world import draw

    draw(tmp_path / "world", seed=5, train=2, dev=6, test=6, seed_preferences=1)
    video = min((tmp_path / "world" / "videos").glob("*.mp4"))
    uri = fresh_database(tmp_path)
    policy = make_policy(tmp_path / "model")
    (policy / NAME).write_bytes(mlmodel_file())
    run = RegisteredRun(uri, tmp_path)
    run.register(1, None, uri=str(policy))
    registry.promote(registry.decide("m", uri=uri, version="1"), uri=uri, force=True)
    assert open_client(uri).get_model_version_by_alias("m", "champion").source == str(policy)
    addresses = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    try:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        row = {"video": str(video), "question": "what colour is the object ?"}
        answers = mlflow.pyfunc.load_model("models:/m@champion").predict(row)
    finally:
        mlflow.set_tracking_uri(addresses[0])
        mlflow.set_registry_uri(addresses[1])
    columns = {name: [value] for name, value in row.items()}
    assert answers == _load_pyfunc(str(policy)).predict(columns)
    assert answers[0].split()
