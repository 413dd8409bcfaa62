"""A loaded model and clips in memory: what the model says and chooses, in batches, for training runs and the gate.

The pipeline's engines do the same for any model from stored frames; this one keeps projected video features, so that
the gate over hundreds of questions takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import VideoLlavaForConditionalGeneration, VideoLlavaProcessor

from isr_dpo.data.world.clips import Clips
from isr_dpo.data.world.model import VIDEO_TOKENS


class Reader:
    """The policy as a function of (clip, prompt); `clips` are indexed by row number."""

    def __init__(self, model: VideoLlavaForConditionalGeneration, processor: VideoLlavaProcessor, clips: Clips):
        self.model, self.tokenizer = model, processor.tokenizer
        self.words: dict[str, int] = self.tokenizer.get_vocab()
        self.states = tower_states(model, clips)

    @torch.no_grad()
    def write(
        self,
        rows: Sequence[int],
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> list[str]:
        """One text a prompt about clip `rows[i]`; greedy at temperature 0."""
        texts: list[str] = []
        for at in range(0, len(rows), 256):
            part = slice(at, at + 256)
            texts += self._write(rows[part], prompts[part], max_new_tokens, temperature, generator)
        return texts

    def _write(
        self,
        rows: Sequence[int],
        prompts: Sequence[str],
        max_new_tokens: int,
        temperature: float,
        generator: torch.Generator | None,
    ) -> list[str]:
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        embeds, mask = self._prefix(rows, prompts)
        cache, done, drawn = None, torch.zeros(len(rows), dtype=torch.bool), []
        positions = mask.cumsum(1) - 1
        for _ in range(max_new_tokens):
            out = self.model.model.language_model(
                inputs_embeds=embeds,
                attention_mask=mask,
                position_ids=positions.clamp(min=0),
                past_key_values=cache,
                use_cache=True,
            )
            cache, logits = out.past_key_values, self.model.lm_head(out.last_hidden_state[:, -1])
            if temperature > 0:
                token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
            else:
                token = logits.argmax(-1)
            token = torch.where(done, torch.tensor(pad), token)
            drawn.append(token)
            done = done | (token == end)
            if bool(done.all()):
                break
            embeds = self.model.get_input_embeddings()(token)[:, None]
            mask = torch.cat([mask, torch.ones(len(rows), 1, dtype=torch.long)], 1)
            positions = positions[:, -1:] + 1
        return [str(text) for text in self.tokenizer.batch_decode(torch.stack(drawn, 1), skip_special_tokens=True)]

    @torch.no_grad()
    def choose(self, rows: Sequence[int], prompts: Sequence[str], *, rationale_tokens: int, cue: str) -> torch.Tensor:
        """Probabilities of the labels "1" and "2" after the model's own rationale and the cue: float32 [row, 2]."""
        rationales = self.write(rows, prompts, max_new_tokens=rationale_tokens)
        begun = [f"{text} {cue}" for text in rationales]
        odds = []
        for at in range(0, len(rows), 256):
            part = slice(at, at + 256)
            embeds, mask = self._prefix(rows[part], prompts[part], begun[part])
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            hidden = self.model.model.language_model(
                inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
            ).last_hidden_state[:, -1]
            odds.append(self.model.lm_head(hidden).softmax(-1)[:, [self.words["1"], self.words["2"]]])
        return torch.cat(odds)

    def _prefix(
        self, rows: Sequence[int], prompts: Sequence[str], begun: Sequence[str] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Left-padded input embeddings [row, token, WIDTH] of prompt and `begun` reply, and their mask."""
        texts = [f"{prompt} assistant :" for prompt in prompts]
        texts = [f"{text} {reply}" for text, reply in zip(texts, begun, strict=True)] if begun else texts
        encoded = [[self.words.get(word, self.words["<unk>"]) for word in text.split()] for text in texts]
        longest = max(map(len, encoded))
        embed = self.model.get_input_embeddings()
        pad, start = self.words["<pad>"], self.words["<s>"]
        ids = torch.tensor([[pad] * (longest - len(e)) + [start] + [pad] * VIDEO_TOKENS + e for e in encoded])
        embeds = embed(ids)
        mask = torch.ones_like(ids)
        video = self.model.model.multi_modal_projector(self.states[list(rows)])
        for i, e in enumerate(encoded):
            at = longest - len(e)
            mask[i, :at] = 0
            embeds[i, at + 1 : at + 1 + VIDEO_TOKENS] = video[i]
        return embeds, mask


@torch.no_grad()
def tower_states(model: VideoLlavaForConditionalGeneration, clips: Clips) -> torch.Tensor:
    """What the (frozen) tower makes of every clip: float32 [clip, VIDEO_TOKENS, WIDTH], before the projector."""
    states = []
    for rows in torch.split(torch.arange(len(clips.scenes)), 64):
        hidden = model.model.video_tower(clips.pixels(rows).flatten(0, 1), output_hidden_states=True).hidden_states[-1]
        states.append(hidden.reshape(len(rows), VIDEO_TOKENS, -1))
    return torch.cat(states)
