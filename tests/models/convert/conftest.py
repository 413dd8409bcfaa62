"""One SentencePiece model for all of these tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.convert.original_llava import train_tokenizer


@pytest.fixture(scope="session")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer.model of 400 tokens."""
    return train_tokenizer(tmp_path_factory.mktemp("pieces"))
