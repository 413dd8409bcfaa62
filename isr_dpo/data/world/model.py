"""The tiny video LMM: Video-LLaVA as transformers defines it, with about a million parameters, and its processor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from isr_dpo import prompts
from isr_dpo.data.world.scene import QUESTIONS, SLOTS, caption, claim

if TYPE_CHECKING:
    from transformers import VideoLlavaForConditionalGeneration, VideoLlavaProcessor

FRAMES_SEEN = 8
VIEW_PX = 32
PATCH_PX = 16
WIDTH = 96
VIDEO_TOKENS = FRAMES_SEEN * ((VIEW_PX // PATCH_PX) ** 2 + 1)  # Hugging Face's class keeps the class token
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
SPECIAL = {
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}
MEDIA = ("<image>", "<video>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ ' assistant : ' }}{% else %}{{ '<s>' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}{{ '<video>' }}{% endif %}"
    "{% if part['type'] == 'text' %}{{ ' ' + part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' assistant :' }}{% endif %}"
)


def vocabulary() -> list[str]:
    """Every token: the special ones, then the words of the scenes, of the prompts and of the chat template."""
    set_ = prompts.load("world")
    templates = (set_.answer, set_.describe, set_.refine, set_.judge, set_.judge_context)
    fields = {"question": "", "context": "", "answer_1": "", "answer_2": ""}
    texts = [template.render(**fields) + " " + template.cue for template in templates]
    texts += [*QUESTIONS.values(), "assistant : 1 2"]
    texts += [claim(slot, value) for slot, values in SLOTS.items() for value in values]
    texts.append(caption({slot: values[0] for slot, values in SLOTS.items()}))
    words = {word for text in texts for word in text.split()}
    return [*SPECIAL.values(), *MEDIA, *sorted(words)]


def new_processor() -> VideoLlavaProcessor:
    """The processor: a word-level tokenizer, a 32 x 32 view, the chat template (video first, then the text)."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, VideoLlavaProcessor
    from transformers.models.video_llava.image_processing_video_llava import VideoLlavaImageProcessor
    from transformers.models.video_llava.video_processing_video_llava import VideoLlavaVideoProcessor

    words = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(vocabulary())}, unk_token=SPECIAL["unk_token"])
    )
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        **SPECIAL,
        additional_special_tokens=list(MEDIA),
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=512,
    )
    view: dict[str, Any] = {
        "size": {"shortest_edge": VIEW_PX},
        "crop_size": {"height": VIEW_PX, "width": VIEW_PX},
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }
    return VideoLlavaProcessor(
        image_processor=VideoLlavaImageProcessor(**view),
        video_processor=VideoLlavaVideoProcessor(**view, do_sample_frames=False, num_frames=FRAMES_SEEN),
        tokenizer=tokenizer,
        patch_size=PATCH_PX,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def new_model(processor: VideoLlavaProcessor) -> VideoLlavaForConditionalGeneration:
    """The model with fresh weights from torch's global generator, at a larger scale than usual: it learns sooner."""
    from transformers import CLIPVisionConfig, LlamaConfig, VideoLlavaConfig, VideoLlavaForConditionalGeneration

    tokenizer = processor.tokenizer
    ids = {name: tokenizer.convert_tokens_to_ids(SPECIAL[name]) for name in SPECIAL}
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        initializer_range=0.08,
        attention_bias=True,
        bos_token_id=ids["bos_token"],
        eos_token_id=ids["eos_token"],
        pad_token_id=ids["pad_token"],
    )
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=VIEW_PX,
        patch_size=PATCH_PX,
        projection_dim=WIDTH,
    )
    config = VideoLlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(VIEW_PX // PATCH_PX) ** 2,
        video_seq_length=VIDEO_TOKENS,
        bos_token_id=ids["bos_token"],
        eos_token_id=ids["eos_token"],
        pad_token_id=ids["pad_token"],
    )
    model = VideoLlavaForConditionalGeneration(config)
    _set_heads(model, labels=(tokenizer.convert_tokens_to_ids("1"), tokenizer.convert_tokens_to_ids("2")))
    return model


def _set_heads(model: VideoLlavaForConditionalGeneration, *, labels: tuple[int, int]) -> None:
    """Initialise three attention heads by hand; they are trained like all others.

    Layer 0, head 0 looks at the previous token; layer 0, head 1 at the option labels seen so far (so that a word knows
    which answer it is in); layer 1, head 0 at tokens equal to the previous one. A judge that has written "red" finds
    the answer with "red" in it by these three; found by training alone they take far longer than all the rest.
    """
    import torch

    width, half = WIDTH // 4, WIDTH // 8
    pairs = torch.arange(width) % half  # Llama turns dimensions i and i + half by 10000 ** (-i / half) a position
    turn = 10000.0 ** (-torch.arange(half) / half)
    language = model.model.language_model
    first, second = (layer.self_attn for layer in language.layers[:2])
    with torch.no_grad():
        for layer in language.layers:
            layer.mlp.down_proj.weight *= 0.25
            layer.self_attn.o_proj.weight *= 0.5
        embedding = language.embed_tokens.weight
        embedding *= 4.0
        words, before, inside = torch.linalg.qr(torch.randn(WIDTH, 3 * width))[0].T.split(width)  # orthonormal rows

        sharp = (torch.arange(half) < 4).float() * 6.0
        for projection in (first.q_proj, first.k_proj):
            projection.weight[: 2 * width] = 0
        first.q_proj.bias[:width] = torch.cat([sharp, torch.zeros(half)])
        first.k_proj.bias[:width] = torch.cat([sharp * turn.cos(), sharp * turn.sin()])
        first.v_proj.weight[:width] = words
        first.o_proj.weight[:, :width] = before.T * 0.5

        marks = sum(embedding[label] / embedding[label].norm() for label in labels)
        first.q_proj.bias[2 * width - 1] = 2.0  # the slowest dimension: distance does not matter
        first.k_proj.weight[2 * width - 1] = marks * 2.0
        first.v_proj.weight[width : 2 * width] = words
        first.o_proj.weight[:, width : 2 * width] = inside.T * 0.5

        slow = (pairs >= half // 2).float()[:, None] * 2.5  # dimensions that hardly turn over a prompt
        second.q_proj.weight[:width] = before * slow
        second.k_proj.weight[:width] = words * slow
        second.v_proj.weight[:width] = inside
