"""A hub's models as a store: read at one commit, never written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tenacity

from isr_dpo.errors import DataError, OutsideError, RecipeError, StoreError
from isr_dpo.stores import Missing, hub, open_store, read_bytes
from tests.servers.hub_server import COMMIT, Hub, hub_server

FILES = {"config.json": b"{}", "sub/weights.safetensors": b"0123456789" * 1000}
MODEL = f"hf://org/tiny@{COMMIT}"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.asked.retry, "wait", tenacity.wait_none())  # type: ignore[attr-defined]
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with hub_server(FILES) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def test_files_of_a_commit_are_listed_and_read(served: Hub, tmp_path: Path) -> None:
    assert hub.pinned("hf://org/tiny") == hub.pinned("hf://org/tiny@main") == MODEL
    store = open_store(MODEL)
    assert store.list(MODEL) == {name: len(content) for name, content in FILES.items()}
    for name, content in FILES.items():
        store.get(f"{MODEL}/{name}", tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_files_of_a_data_set_are_read_too(served: Hub) -> None:
    assert read_bytes(f"hf://datasets/org/tiny@{COMMIT}/config.json") == b"{}"
    assert served.asked
    assert all(path.split()[1].startswith("/datasets/org/tiny/resolve/") for path in served.asked)
    assert open_store(MODEL).list(f"hf://datasets/org/tiny@{COMMIT}") == open_store(MODEL).list(MODEL)


def test_what_is_not_there_is_missing(served: Hub) -> None:
    with pytest.raises(Missing):
        read_bytes(f"{MODEL}/manifest.json")
    assert open_store(MODEL).list("hf://org/nothing") == {}
    with pytest.raises(DataError, match="hf://org/nothing: no such model, revision or folder on the hub"):
        hub.pinned("hf://org/nothing")


def test_nothing_is_written(served: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for write in (lambda: open_store(MODEL).put(tmp_path / "file", MODEL), lambda: open_store(MODEL).delete(MODEL)):
        with pytest.raises(StoreError, match="a hub is only read"):
            write()
    assert served.asked == []


def test_the_token_is_the_environments(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    served.token = "hush"
    with pytest.raises(StoreError, match=r"the hub refuses \(401\): no such model, or HF_TOKEN may not read it"):
        hub.pinned("hf://org/tiny")
    monkeypatch.setenv("HF_TOKEN", "hush")
    assert hub.pinned("hf://org/tiny") == MODEL


def test_a_hub_in_trouble_is_asked_again_and_then_named(served: Hub) -> None:
    served.trouble = 503
    with pytest.raises(OutsideError, match="the hub answers 503; run again"):
        hub.pinned("hf://org/tiny")
    assert len(served.asked) >= 5


@pytest.mark.parametrize("uri", ["hf://tiny", "hf://org/", "hf://org/a b"])
def test_what_names_no_model_is_refused(uri: str, served: Hub) -> None:
    with pytest.raises(RecipeError):
        hub.pinned(uri)
