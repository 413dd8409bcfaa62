"""What both sides of the DPO benchmark share: one random Video-LLaVA, one set of pairs, one set of clips.

TRL takes images only, so that it gets a clip's frames as images. The image tower is a copy of the video tower and keeps
the class token too (`vision_feature_select_strategy: full`), so that frames as images and frames as a video are the
same tokens with the same features, and both sides must find the same log-probs.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isr_dpo.records import Preference, read_files, to_jsonl

WORD = "w{:04d}"
IMAGE, VIDEO = "<image>", "<video>"


@dataclass(frozen=True)
class Sizes:
    """Shape of the model and of the pairs."""

    hidden: int = 512
    layers: int = 8
    heads: int = 8
    intermediate: int = 1376
    vocabulary: int = 8000
    frames: int = 8
    pixels: int = 224
    patch: int = 14
    tower_hidden: int = 192
    tower_layers: int = 3
    pairs: int = 2
    """A step's; the same ones in every step."""
    prompt_words: int = 60
    response_words: tuple[int, int] = (100, 140)
    """Shortest and longest response, drawn uniformly."""

    @property
    def video_tokens(self) -> int:
        return self.frames * ((self.pixels // self.patch) ** 2 + 1)


SMALL = Sizes(
    hidden=64,
    layers=2,
    heads=2,
    intermediate=128,
    vocabulary=200,
    frames=2,
    pixels=28,
    tower_hidden=32,
    tower_layers=2,
    prompt_words=6,
    response_words=(4, 9),
)


def write(folder: Path, sizes: Sizes, *, seed: int = 0) -> None:
    """Draws the model (`folder/policy`) and the pairs (`folder/pairs.jsonl`)."""
    import torch
    from transformers import VideoLlavaForConditionalGeneration

    torch.manual_seed(seed)
    processor = new_processor(sizes)
    model = VideoLlavaForConditionalGeneration(new_config(sizes, processor.tokenizer))
    model.model.image_tower.load_state_dict(model.model.video_tower.state_dict())
    model.save_pretrained(folder / "policy")
    processor.save_pretrained(folder / "policy")
    (folder / "sizes.json").write_text(json.dumps(asdict(sizes)), encoding="utf-8")
    (folder / "pairs.jsonl").write_bytes(to_jsonl(draw_pairs(sizes, seed=seed)))


def read_sizes(folder: Path) -> Sizes:
    values = json.loads((folder / "sizes.json").read_text(encoding="utf-8"))
    return Sizes(**{**values, "response_words": tuple(values["response_words"])})


def read_pairs(folder: Path) -> list[Preference]:
    return read_files(folder, ["pairs.jsonl"], Preference)


def draw_pairs(sizes: Sizes, *, seed: int) -> list[Preference]:
    draw = random.Random(seed)

    def text(words: int) -> str:
        return " ".join(WORD.format(draw.randrange(sizes.vocabulary - 10)) for _ in range(words))

    return [
        Preference(
            id=f"pair-{i}",
            video=f"clip-{i}",
            prompt=text(sizes.prompt_words),
            chosen=text(draw.randint(*sizes.response_words)),
            rejected=text(draw.randint(*sizes.response_words)),
        )
        for i in range(sizes.pairs)
    ]


def clip(video: str, sizes: Sizes) -> np.ndarray:
    """Frames of a made-up clip, uint8 [F, H, W, 3], coarse blocks of colour, others for each name."""
    rows, blocks = np.random.default_rng(list(video.encode())), sizes.pixels // sizes.patch
    coarse = rows.integers(0, 256, (sizes.frames, blocks, blocks, 3), dtype=np.uint8)
    return coarse.repeat(sizes.patch, axis=1).repeat(sizes.patch, axis=2)


def new_config(sizes: Sizes, tokenizer: Any) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, VideoLlavaConfig

    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        max_position_embeddings=4096,
        **special,
    )
    vision = CLIPVisionConfig(
        hidden_size=sizes.tower_hidden,
        intermediate_size=4 * sizes.tower_hidden,
        num_hidden_layers=sizes.tower_layers,
        num_attention_heads=max(1, sizes.tower_hidden // 64),
        image_size=sizes.pixels,
        patch_size=sizes.patch,
    )
    return VideoLlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        video_token_index=tokenizer.convert_tokens_to_ids(VIDEO),
        vision_feature_layer=-2,
        vision_feature_select_strategy="full",
        image_seq_length=sizes.video_tokens // sizes.frames,
        video_seq_length=sizes.video_tokens,
        **special,
    )


def new_processor(sizes: Sizes) -> Any:
    """A tokenizer of numbered words (w0000 ...), frames without resizing, the demo world's chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, VideoLlavaProcessor
    from transformers.models.video_llava.image_processing_video_llava import VideoLlavaImageProcessor
    from transformers.models.video_llava.video_processing_video_llava import VideoLlavaVideoProcessor

    from isr_dpo.data.world.model import CHAT_TEMPLATE, SPECIAL

    words = [*SPECIAL.values(), IMAGE, VIDEO, "assistant", ":"]
    words += [WORD.format(i) for i in range(sizes.vocabulary - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    view: dict[str, Any] = {
        "size": {"shortest_edge": sizes.pixels},
        "crop_size": {"height": sizes.pixels, "width": sizes.pixels},
    }
    return VideoLlavaProcessor(
        image_processor=VideoLlavaImageProcessor(**view),
        video_processor=VideoLlavaVideoProcessor(**view, do_sample_frames=False, num_frames=sizes.frames),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            **SPECIAL,
            additional_special_tokens=[IMAGE, VIDEO],
            clean_up_tokenization_spaces=False,
            padding_side="left",
            model_max_length=4096,
        ),
        patch_size=sizes.patch,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
