"""The starting checkpoint: rebuilt from a seed, readable by transformers, and good enough to learn from."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from isr_dpo import prompts  # noqa: E402
from isr_dpo.data.world import build, gate, start  # noqa: E402
from isr_dpo.data.world.clips import film  # noqa: E402
from isr_dpo.data.world.lessons import ATTENTIVE, TASKS, draw_lesson  # noqa: E402
from isr_dpo.data.world.model import VIDEO_TOKENS, new_processor, vocabulary  # noqa: E402
from isr_dpo.data.world.reader import Reader  # noqa: E402
from isr_dpo.data.world.scene import QUESTIONS, sample_scene  # noqa: E402
from isr_dpo.data.world.tuition import collate  # noqa: E402

MAX_BYTES = 6 * 2**20


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load(folder: Path):
    return (
        transformers.VideoLlavaForConditionalGeneration.from_pretrained(folder),
        transformers.AutoProcessor.from_pretrained(folder),
    )


def chat(processor, text: str) -> str:
    content = [{"type": "video"}, {"type": "text", "text": text}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def test_a_shortened_build_is_loadable_and_depends_on_its_seed_alone(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        build(tmp_path / name, seed=seed, scale=0.01)
    digest = {n: hashlib.sha256((tmp_path / n / "model.safetensors").read_bytes()).hexdigest() for n in "abc"}
    assert digest["a"] == digest["b"] != digest["c"]
    model, processor = load(tmp_path / "a")
    inputs = processor(text=chat(processor, QUESTIONS["place"]), videos=np.zeros((8, 32, 32, 3), np.uint8))
    written = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert set(processor.decode(written).split()) <= set(vocabulary())
    assert "seed 1" in (tmp_path / "a" / "README.md").read_text()


def test_lessons_are_tokenised_as_the_processor_does_it():
    processor, rng = new_processor(), np.random.default_rng(0)
    words = processor.tokenizer.get_vocab()
    for task in TASKS * 5:
        lesson = draw_lesson(task, sample_scene(rng).facts, ATTENTIVE, rng)
        ids, labels = collate([lesson], words)
        text = chat(processor, lesson.prompt)
        inputs = processor(text=text, videos=np.zeros((8, 32, 32, 3), np.uint8))["input_ids"][0].tolist()
        assert inputs.count(words["<video>"]) == VIDEO_TOKENS
        reply = processor.tokenizer(lesson.target, add_special_tokens=False)["input_ids"]
        assert [i for i in inputs if i != words["<video>"]] + [*reply, words["</s>"]] == ids[0].tolist()
        assert labels[0].tolist()[-len(reply) - 1 :] == [*reply, words["</s>"]]
        assert words["<unk>"] not in ids


def test_chat_template_closes_an_assistants_turn():
    processor = new_processor()
    turns = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "hello"}]}]
    turns += [{"role": "assistant", "content": [{"type": "text", "text": "the object is red ."}]}]
    text = processor.apply_chat_template(turns)
    assert text.split() == ["<s><video>", "hello", "assistant", ":", "the", "object", "is", "red", ".</s>"]


def test_decoding_gives_words_with_blanks_and_unknown_words_are_marked():
    tokenizer = new_processor().tokenizer
    assert tokenizer.decode(tokenizer("The object is RED.")["input_ids"]) == "the object is red ."
    assert tokenizer("zeppelin")["input_ids"] == [tokenizer.unk_token_id]


def test_judge_templates_end_in_one_word_and_a_cue():
    set_ = prompts.load("world")
    for template in (set_.judge, set_.judge_context):
        assert template.rationale_tokens == 1
        assert template.cue in vocabulary()


def test_the_reader_agrees_with_transformers_generate():
    model, processor = load(start())
    scenes = [sample_scene(np.random.default_rng(5)) for _ in range(1)]
    clips = film(scenes, seed=0)
    prompt = QUESTIONS["shape"]
    frames = clips.views[0].permute(0, 2, 3, 1).numpy()
    inputs = processor(text=chat(processor, prompt), videos=frames)
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    mine = Reader(model, processor, clips).write([0], [prompt], max_new_tokens=24)
    assert mine == [processor.decode(ids, skip_special_tokens=True)]


def test_the_committed_start_is_small_and_passes_the_gate():
    assert sum(f.stat().st_size for f in start().iterdir()) <= MAX_BYTES
    report = gate(start(), seed=11, clips=60)
    assert report.problems() == []
    assert 0.45 < report.greedy.value < 0.75
    assert report.discordant.value > 0.2
    assert report.judge["true"].value > 0.85
    assert report.described["refined"].value > report.described["own"].value
