"""The converted tokenizer beside SentencePiece itself, chunk by chunk as the original code splits a prompt."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import sentencepiece

from isr_dpo.models.convert.tokenizer import convert_tokenizer
from tests.models.convert.original_layout import SENTENCES

LETTERS = "".join(map(chr, range(32, 127))).replace("<", "") + "\n\té日😀▁   "
CONFIG = {"vocab_size": 400, "max_position_embeddings": 512}


def _texts(count: int) -> list[str]:
    """Random characters, and words of what the model was trained on."""
    draw = random.Random(0)
    words = " ".join(SENTENCES).split()
    made = ["".join(draw.choices(LETTERS, k=draw.randint(1, 12))) for _ in range(count)]
    return made + [" ".join(draw.choices(words, k=draw.randint(1, 30))) for _ in range(count)]


def test_any_text_gets_sentencepieces_ids_and_comes_back(pieces: Path) -> None:
    original = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    tokenizer = convert_tokenizer(pieces.parent, CONFIG).tokenizer
    for text in _texts(1000):
        ids = original.encode(text)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids, text
        assert tokenizer.decode(ids) == original.decode(ids) == text.replace("▁", " ")


@pytest.mark.parametrize("videos", [1, 3])
def test_each_chunk_around_videos_is_tokenised_alone(videos: int, pieces: Path) -> None:
    original = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    tokenizer = convert_tokenizer(pieces.parent, CONFIG).tokenizer
    for before, after in zip(_texts(50), reversed(_texts(50)), strict=True):
        ids = [1, *original.encode(before), *[401] * videos, *original.encode(after)]
        assert tokenizer(f"{before}{'<video>' * videos}{after}")["input_ids"] == ids
    newline = original.piece_to_id("<0x0A>")
    assert tokenizer("<video>\nWhat")["input_ids"][:4] == [1, 401, original.piece_to_id("▁"), newline]


def test_what_pads_is_the_unknown_token(pieces: Path) -> None:
    tokenizer = convert_tokenizer(pieces.parent, CONFIG).tokenizer
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.decode([1, 0, 2, 400, 401], skip_special_tokens=True) == ""
