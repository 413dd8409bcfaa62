"""One SentencePiece model and one checkpoint a kind for all of these tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.models.convert.original_layout import Original, save, train_tokenizer

SMALL = Original(400, time=True)


@pytest.fixture(scope="session")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer.model of 400 tokens."""
    return train_tokenizer(tmp_path_factory.mktemp("pieces"))


@pytest.fixture(scope="session")
def _kept(tmp_path_factory: pytest.TempPathFactory, pieces: Path) -> Path:
    folder, weights = tmp_path_factory.mktemp("sources"), SMALL.weights()
    for kind in ("bin", "safetensors"):
        save(folder / kind, SMALL, weights, pieces, kind=kind)
    return folder


@pytest.fixture
def source(_kept: Path, tmp_path: Path) -> Path:
    """A checkpoint of two safetensors."""
    return Path(shutil.copytree(_kept / "safetensors", tmp_path / "source"))


@pytest.fixture
def bin_source(_kept: Path, tmp_path: Path) -> Path:
    """The same as two `.bin` files."""
    return Path(shutil.copytree(_kept / "bin", tmp_path / "bin-source"))
