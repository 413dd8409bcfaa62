"""From the published files to a submitted run: the README's five commands, run. Hub, bucket and cluster are doubles,
the archives hold a few clips, the checkpoint some thousand weights."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import tenacity

from isr_dpo import cli, config
from isr_dpo.stores import hub, open_store, read_bytes
from pipelines import __main__ as pipelines
from pipelines import recipe_files
from tests.models.convert.original_layout import Original, save, train_tokenizer
from tests.pipelines.submitted import Scene, scene
from tests.pipelines.test_recipes_readme import SECTION, typed
from tests.servers.hub_server import hub_server

pytestmark = pytest.mark.parametrize("run_uri", ["moto"], indirect=True)
SETS = ("actnet", "vidal", "webvid", "ssv2", "msvd", "msrvtt", "tgif")
OFFICIAL = ("msvd", "msrvtt", "tgif")
TRAINED = [f"v_clip{number}" for number in range(4)]
INSTRUCTED = "v_instructed"
"""A clip of LLaVA-Hound-SFT's instruction data alone."""


def jsonl(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def conversation(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": f"<video>\n{question}"}, {"from": "gpt", "value": answer}]


def archive(clips: list[str]) -> bytes:
    """Frames as published: <clip>/c01_0001.jpeg ..."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for clip in clips:
            for number in (1, 2):
                member = tarfile.TarInfo(f"{clip}/c01_{number:04d}.jpeg")
                member.size = 5
                tar.addfile(member, io.BytesIO(b"frame"))
    return buffer.getvalue()


def published(checkpoint: Path) -> dict[str, Mapping[str, bytes]]:
    """Repositories of the hub, by the names and in the layout of the real ones."""
    pairs: list[dict[str, object]] = [
        {"id": f"{v}_0", "video": v, "prompt": "what ?", "answer": "it", "chosen": "a", "rejected": "b"}
        for v in TRAINED
    ]
    instructed: list[dict[str, object]] = [
        {"id": f"{v}_1", "video": v, "conversations": conversation("where ?", "there")} for v in (INSTRUCTED, *TRAINED)
    ]
    story = conversation("Describe it.", "a long story " * 30)
    train = {
        "train_300k/chunk_0.tar.gz": archive(TRAINED[:2]),
        "train_300k/chunk_1.tar.gz": archive([*TRAINED[2:], INSTRUCTED]),
        "video_instruction/train/dpo/sft_dpo_17k.jsonl": jsonl(pairs),
        "video_instruction/train/sft/video_240k_caption_15k.jsonl": jsonl(
            [*instructed, {"id": INSTRUCTED, "video": INSTRUCTED, "conversations": story}]
        ),
    }
    test = {f"video_data/test/{name}.tar.gz": archive([f"{name}/{name}1"]) for name in SETS}
    for name in SETS:
        turns = conversation("what ?", "it")
        row: dict[str, object] = {"id": f"{name}_q", "video": f"test/{name}/{name}1", "conversations": turns}
        test[f"video_instruction/test/{name}.qa.jsonl"] = jsonl([{**row, "caption": "a thing"}])
        if name in OFFICIAL:
            test[f"video_instruction/test/{name}.qa.official.jsonl"] = jsonl([row])
    return {
        "datasets/ShareGPTVideo/train_video_and_instruction": train,
        "datasets/ShareGPTVideo/test_video_and_instruction": test,
        "ShareGPTVideo/LLaVA-Hound-SFT": {path.name: path.read_bytes() for path in checkpoint.iterdir()},
    }


@pytest.fixture
def here(run_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """A hub with what is published, a bucket with nothing, a cluster with all that a run needs."""
    from huggingface_hub import constants

    small = Original(400, time=True)
    (tmp_path / "pieces").mkdir()
    checkpoint = save(
        tmp_path / "original", small, small.weights(), train_tokenizer(tmp_path / "pieces"), kind="safetensors"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.asked.retry, "wait", tenacity.wait_none())  # type: ignore[attr-defined]
    monkeypatch.setenv("ISR_DPO_CACHE", str(tmp_path / "cache"))
    with hub_server({}, others=published(checkpoint)) as served, scene(run_uri, tmp_path, monkeypatch) as cluster:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield cluster


def test_the_five_commands_of_the_readme_end_in_a_run(
    here: Scene, run_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (recipe_files.FOLDER / "paper-7b.yaml").read_text(encoding="utf-8").replace("s3://my-bucket", run_uri)
    (tmp_path / "paper-7b.yaml").write_text(text)
    replaced = {"paper-7b": str(tmp_path / "paper-7b.yaml"), "MY_PLACEMENT.yaml": str(here.place)}
    more = {"dev": ["--questions", "1"], "submit": ["--host", here.kfp.url]}
    for words in typed(SECTION.partition("**The systems")[0]):
        ours = [replaced.get(word, word.replace("s3://my-bucket", run_uri)) for word in words if word != "--follow"]
        extra = next((found for name, found in more.items() if name in words), [])
        run = cli.main if words[0] == "isr-dpo" else pipelines.main
        assert run([*ours[1 if words[0] == "isr-dpo" else 3 :], *extra]) == 0, capsys.readouterr()
    (submitted,) = here.kfp.runs
    spec = submitted["pipeline_spec"]["pipeline_spec"]
    recipe = config.parse(spec["root"]["inputDefinitions"]["parameters"]["recipe"]["defaultValue"])
    assert (recipe.name, recipe.iterations) == ("paper-7b", 9)
    assert recipe.data.train is not None
    assert recipe.model.start is not None
    dev = [json.loads(line) for line in read_bytes(recipe.data.sets["dev"]).splitlines()]
    assert [(row["id"], row["conversations"][1]["value"]) for row in dev] == [(f"{INSTRUCTED}_1", "there")]
    assert len(read_bytes(recipe.data.train).splitlines()) == len(TRAINED)
    assert {f"{clip}.tar" for clip in (*TRAINED, INSTRUCTED)} <= set(open_store(run_uri).list(str(recipe.data.videos)))
    assert "config.json" in open_store(run_uri).list(recipe.model.start)
    assert "GPU-hours" in capsys.readouterr().out
