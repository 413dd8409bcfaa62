"""A SentencePiece model as a tokenizer that gives the original ids.

The original code splits a prompt at `<video>` and tokenises each chunk alone: each gets SentencePiece's space in front,
`<s>` stands before the first alone. Here a normaliser does that: it works on each text between special tokens. (The
pre-tokenizer that transformers gives Llama's tokenizers today puts a space before the first chunk alone.)

The result is compared with SentencePiece itself before it is used. Texts of ids are its own too, but where bytes are
no UTF-8: then this one shows a replacement character for each byte around them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from isr_dpo.errors import ModelError
from isr_dpo.models.common import VICUNA_TEMPLATE
from isr_dpo.models.convert.source import TOKENIZER

MEDIA = ("<image>", "<video>")
"""Added after the source's own tokens."""
SPACE = "▁"
CONFIG, ADDED = "tokenizer_config.json", "added_tokens.json"
PROBES = (
    "Hello",
    " Hello",
    "  two  spaces ",
    "\nWhat is this?",
    "\n\n",
    "tab\tand\r\n",
    "1234567890",
    "don't",
    "A,b;c.",
    "naïve café",
    "ﬁ ｆｕｌｌ ½ ²",
    "e\u0301",
    "日本語のテスト",
    "Привет мир",
    "😀👩‍👩‍👧",
    "\u00a0\u200b\ufeff",
    "▁",
    "a▁b",
    "the colour of the object",
    "THE VIDEO SHOWS",
    "aaaaaaaaaaaa",
    "x=[1, 2]; {y: '#'}",
    "\x00\x07",
    "<0x0A>",
    *VICUNA_TEMPLATE.split("'"),
)
"""Texts on which both tokenizers must agree: white space, what normalisers would change, bytes, the template's own."""


class Vocabulary(NamedTuple):
    """A tokenizer of the source, and where its special tokens stand."""

    tokenizer: Any
    """transformers' PreTrainedTokenizerFast, `MEDIA` at its end."""
    size: int
    """Tokens of the source, without `MEDIA`."""
    bos: int
    eos: int
    unk: int


def convert_tokenizer(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """The tokenizer of a source `folder` with the model's `config`; `<unk>` pads, as in the original code.

    Raises:
        ModelError: no SentencePiece model, one of another vocabulary than the config's, settings that Llama's
            tokenizer does not have, or other ids than SentencePiece gives.
    """
    original = _read(folder / TOKENIZER)
    added = _added(folder, original)
    size = original.get_piece_size() + len(added)
    if config.get("vocab_size") != size:
        raise ModelError(
            f"{folder}: {TOKENIZER} has {size} tokens{' with the added ones' if added else ''}, "
            f"config.json says vocab_size {config.get('vocab_size')}: they belong to different models"
        )
    special = _special(folder, original, config)
    tokenizer = _wrapped(_backend(original, added, special), original, config, special)
    _compare(folder, tokenizer, original, special["bos"])
    return Vocabulary(tokenizer, size, special["bos"], special["eos"], special["unk"])


def _read(path: Path) -> Any:
    from sentencepiece import SentencePieceProcessor

    if not path.is_file():
        raise ModelError(f"{path.parent}: no {path.name}: the SentencePiece model that the weights were trained with")
    original = SentencePieceProcessor()
    try:
        original.LoadFromSerializedProto(path.read_bytes())
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: not a SentencePiece model, or cut off ({error})") from error
    if original.get_piece_size() == 0:
        raise ModelError(f"{path}: not a SentencePiece model, or cut off: it has no pieces")
    return original


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path}: not a table ({error})") from error


def _added(folder: Path, original: Any) -> list[str]:
    """Tokens after SentencePiece's own, in order."""
    pieces, named = original.get_piece_size(), _json(folder / ADDED)
    if wrong := [token for token, place in named.items() if not isinstance(place, int) or place < 0]:
        raise ModelError(f"{folder}/{ADDED}: puts {wrong[0]} at {named[wrong[0]]!r}, which is no token's number")
    beyond = {token: place for token, place in named.items() if place >= pieces}
    for token, place in named.items():
        if token not in beyond and original.id_to_piece(place) != token:
            raise ModelError(f"{folder}/{ADDED}: puts {token} at {place}, where {TOKENIZER} has another token")
    if sorted(beyond.values()) != list(range(pieces, pieces + len(beyond))):
        raise ModelError(f"{folder}/{ADDED}: leaves gaps after the {pieces} tokens of {TOKENIZER}: {beyond}")
    if clash := [token for token in MEDIA if token in named or original.piece_to_id(token) != original.unk_id()]:
        raise ModelError(f"{folder}: its vocabulary has {clash[0]} already; it is added by the conversion")
    return sorted(beyond, key=beyond.__getitem__)


def _special(folder: Path, original: Any, config: Mapping[str, Any]) -> dict[str, int]:
    ids = {"bos": original.bos_id(), "eos": original.eos_id(), "unk": original.unk_id()}
    for name, place in ids.items():
        if place < 0:
            raise ModelError(f"{folder}/{TOKENIZER}: has no {name} token")
        stated = config.get(f"{name}_token_id", place)
        if stated != place:
            raise ModelError(
                f"{folder}: {TOKENIZER} has {name} at {place}, config.json says {stated}: they belong "
                "to different models"
            )
    settings = _json(folder / CONFIG)
    for key, expected in (("add_bos_token", True), ("add_eos_token", False)):
        if settings.get(key, expected) != expected:
            raise ModelError(
                f"{folder}/{CONFIG}: {key} is {settings[key]}; the original prompts are made with {expected}"
            )
    return ids


def _backend(original: Any, added: Sequence[str], special: Mapping[str, int]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    pieces = [original.id_to_piece(place) for place in range(original.get_piece_size())]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    unk, bos = pieces[special["unk"]], pieces[special["bos"]]
    byte_fallback = all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(original, vocabulary),
            unk_token=unk,
            fuse_unk=True,
            byte_fallback=byte_fallback,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, special["bos"])]
    )
    controls = [pieces[place] for place in sorted(set(special.values()))]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in controls])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in MEDIA])
    return tokenizer


def _merges(original: Any, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs that join to a piece, the likeliest piece first: SentencePiece joins by the score of what comes out."""
    found = []
    for piece, place in vocabulary.items():
        if original.is_control(place) or original.is_unknown(place) or original.is_byte(place):
            continue
        score = original.get_score(place)
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-score, vocabulary[left], vocabulary[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _wrapped(backend: Any, original: Any, config: Mapping[str, Any], special: Mapping[str, int]) -> Any:
    from transformers import PreTrainedTokenizerFast

    names = {f"{name}_token": original.id_to_piece(place) for name, place in special.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **names,
        pad_token=names["unk_token"],
        additional_special_tokens=list(MEDIA),
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=config["max_position_embeddings"],
    )


def _compare(folder: Path, tokenizer: Any, original: Any, bos: int) -> None:
    """Alone and after a video, each probe must get SentencePiece's ids."""
    video = tokenizer.convert_tokens_to_ids(MEDIA[1])
    for text in _unspecial(PROBES, original):
        ids = original.encode(text)
        for given, expected in ((text, [bos, *ids]), (MEDIA[1] + text, [bos, video, *ids])):
            found = tokenizer(given)["input_ids"]
            if found != expected:
                raise ModelError(
                    f"{folder}/{TOKENIZER}: for {given!r} the converted tokenizer gives {found}, SentencePiece "
                    f"{expected}: not a BPE model with Llama's settings (identity normaliser, a space before a text)"
                )


def _unspecial(texts: Iterable[str], original: Any) -> list[str]:
    """Texts in which no special token is written out: those the original code finds by itself."""
    controls = [original.id_to_piece(place) for place in (original.bos_id(), original.eos_id(), original.unk_id())]
    names = (*controls, *MEDIA)
    return [text for text in texts if text and not any(name in text for name in names)]
