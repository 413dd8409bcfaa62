"""Checkpoints in the original layout, as LLaVA-Hound and Video-LLaVA are published: names, shapes, files. Nothing of
transformers and nothing of isr_dpo is in here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor

SENTENCES = (
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "USER: What is the colour of the ball in the video? ASSISTANT: The ball is red.",
    "The red ball rolls to the left, then the blue one falls off the table.",
)
BYTES = slice(3, 259)
"""Ids of SentencePiece's byte pieces."""
VIDEO = "model.video_tower.video_tower."
IMAGE = "model.image_tower.image_tower."


@dataclass(frozen=True)
class Original:
    """Sizes of a model in the original layout, and which of its variants it is."""

    vocabulary: int
    hidden: int = 32
    intermediate: int = 48
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    vision_hidden: int = 32
    vision_intermediate: int = 40
    vision_layers: int = 3
    vision_heads: int = 16
    pixels: int = 28
    patch: int = 14
    frames: int = 8
    theta: float = 10000.0
    epsilon: float = 1e-5
    time: bool = False
    image_tower: bool = True
    class_token: bool = False
    select_layer: int = -2
    dtype: torch.dtype = torch.float64

    def config(self) -> dict[str, Any]:
        """config.json."""
        return {
            "architectures": ["LlavaLlamaForCausalLM"],
            "model_type": "llava_llama",
            "X": ["Video"],
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "hidden_act": "silu",
            "rms_norm_eps": self.epsilon,
            "rope_theta": self.theta,
            "max_position_embeddings": 512,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "tie_word_embeddings": False,
            "torch_dtype": str(self.dtype).removeprefix("torch."),
            "mm_video_tower": "LanguageBind/LanguageBind_Video_merge",
            **({"mm_image_tower": "LanguageBind/LanguageBind_Image"} if self.image_tower else {}),
            "mm_hidden_size": self.vision_hidden,
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": self.select_layer,
            "mm_vision_select_feature": "cls_patch" if self.class_token else "patch",
            "mm_use_x_start_end": False,
            "mm_use_x_patch_token": False,
            "use_mm_proj": True,
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor."""
        width, wide = self.hidden, self.vision_hidden
        keys = width // self.heads * self.kv_heads
        found = {"model.embed_tokens.weight": (self.vocabulary, width)}
        for n in range(self.layers):
            layer = f"model.layers.{n}."
            attention = {"q_proj": width, "k_proj": keys, "v_proj": keys, "o_proj": width}
            found |= {f"{layer}self_attn.{name}.weight": (rows, width) for name, rows in attention.items()}
            found |= {f"{layer}mlp.{name}.weight": (self.intermediate, width) for name in ("gate_proj", "up_proj")}
            found[f"{layer}mlp.down_proj.weight"] = (width, self.intermediate)
            found |= {f"{layer}{name}.weight": (width,) for name in ("input_layernorm", "post_attention_layernorm")}
            found[f"{layer}self_attn.rotary_emb.inv_freq"] = (width // self.heads // 2,)
        found |= {"model.norm.weight": (width,), "lm_head.weight": (self.vocabulary, width)}
        found |= self._tower(VIDEO, time=self.time)
        found |= self._tower(IMAGE, time=False) if self.image_tower else {}
        found |= _linear("model.mm_projector.0", width, wide) | _linear("model.mm_projector.2", width, width)
        return found

    def _tower(self, prefix: str, *, time: bool) -> dict[str, tuple[int, ...]]:
        width, places = self.vision_hidden, (self.pixels // self.patch) ** 2 + 1
        found: dict[str, tuple[int, ...]] = {
            f"{prefix}embeddings.class_embedding": (width,),
            f"{prefix}embeddings.patch_embedding.weight": (width, 3, self.patch, self.patch),
            f"{prefix}embeddings.position_embedding.weight": (places, width),
            f"{prefix}embeddings.position_ids": (1, places),
            **_norm(f"{prefix}pre_layrnorm", width),
            **_norm(f"{prefix}post_layernorm", width),
        }
        attentions = ("self_attn", "temporal_attn") if time else ("self_attn",)
        norms = ("layer_norm1", "layer_norm2", "temporal_layer_norm1") if time else ("layer_norm1", "layer_norm2")
        for n in range(self.vision_layers):
            layer = f"{prefix}encoder.layers.{n}."
            for attention in attentions:
                for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    found |= _linear(f"{layer}{attention}.{name}", width, width)
            for name in norms:
                found |= _norm(layer + name, width)
            found |= _linear(f"{layer}mlp.fc1", self.vision_intermediate, width)
            found |= _linear(f"{layer}mlp.fc2", width, self.vision_intermediate)
            if time:
                found[f"{layer}temporal_embedding"] = (1, self.frames, width)
        return found

    def weights(self, *, seed: int = 0) -> dict[str, Tensor]:
        """Random ones, at a scale at which the most likely tokens are far from one another."""
        generator = torch.Generator().manual_seed(seed)
        return {name: self._values(name, shape, generator) for name, shape in self.shapes().items()}

    def _values(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        if name.endswith("position_ids"):
            return torch.arange(shape[1])[None]
        if name.endswith("inv_freq"):
            return self.inverse_frequencies()
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        if len(shape) == 1:
            drawn = 0.1 * drawn + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        elif "embed" not in name:
            drawn = 2.0 * drawn / math.sqrt(math.prod(shape[1:]))
        if name == "lm_head.weight":
            drawn[BYTES] = 0.0  # no raw bytes in the answers: libraries differ in how they show what is no UTF-8
        return drawn.to(self.dtype)

    def inverse_frequencies(self) -> Tensor:
        size = self.hidden // self.heads
        return 1.0 / self.theta ** (torch.arange(0, size, 2).float() / size)


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def train_tokenizer(folder: Path, *, size: int = 400, sentences: Sequence[str] = SENTENCES, **options: Any) -> Path:
    """Trains a SentencePiece model with Llama's settings: `folder`/tokenizer.model."""
    settings = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
        "character_coverage": 1.0,
        **{"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1},
        **{"num_threads": 1, "minloglevel": 2},
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=size,
        **{**settings, **options},
    )
    (folder / "tokenizer.vocab").unlink()
    return folder / "tokenizer.model"


def save(
    folder: Path, original: Original, weights: Mapping[str, Tensor], tokenizer: Path, *, kind: str, shards: int = 2
) -> Path:
    """Writes a checkpoint in the original layout: `kind` is "bin" or "safetensors"."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(original.config()))
    (folder / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True, "add_eos_token": False}))
    names, places = sorted(weights), {}
    stem, ending = ("pytorch_model", "bin") if kind == "bin" else ("model", "safetensors")
    for number in range(shards):
        part = {name: weights[name] for name in names[number::shards]}
        file = f"{stem}-{number + 1:05d}-of-{shards:05d}.{ending}" if shards > 1 else f"{stem}.{ending}"
        if kind == "bin":
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {"total_size": sum(t.nbytes for t in weights.values())}, "weight_map": places}
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    return folder
