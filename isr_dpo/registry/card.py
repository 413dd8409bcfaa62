"""The model card: what a version is, in Markdown, for whoever meets it in MLflow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from isr_dpo import layout
from isr_dpo.config import Recipe

if TYPE_CHECKING:
    from isr_dpo.registry.registration import Candidate

CHARACTERS = 5000
"""What MLflow's database has room for."""
_VALUE_CHARACTERS = 250
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKS = frozenset("\\`*_{}[]()#+-.!|~=:")
_CONTEXTS: Mapping[str, str] = {
    "none": "no description of the video (self-rewarding)",
    "fixed": "the first round's description of the video, in all rounds",
    "renew": "a description of the video written anew in each round",
    "retrospective": "its description of the video, improved on in each round (ISR-DPO)",
    "shuffled": "the description of another video (a control)",
}
_JUDGES: Mapping[str, str] = {
    "self": "the policy itself",
    "random": "chance (a control)",
    "longer": "the longer answer wins (a control)",
}
_LOADING = """\
## Loading
```python
import mlflow
model = mlflow.pyfunc.load_model("models:/{name}@champion")  # or models:/{name}/VERSION
model.predict({{"video": "CLIP.mp4", "question": "What happens?"}})
```
`isr-dpo ask CLIP.mp4 "What happens?" --model models:/{name}@champion` does the same in a terminal.
"""


def model_card(recipe: Recipe, candidate: Candidate) -> str:
    """The card of `candidate`, a policy that `recipe` trained; at most `CHARACTERS` long. What others wrote (names,
    addresses, file names) is escaped: it shows as it is and makes no Markdown or HTML."""
    rows = [*_making(recipe, candidate.index), *_figures(recipe, candidate), *_origin(candidate)]
    lines = [
        f"# {layout.policy_name(candidate.index)} of {escaped(recipe.name)}",
        "",
        "A video LMM that was aligned with its own judgement: iterative self-retrospective DPO.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
        _LOADING.format(name=recipe.model.registered_name),
    ]
    card = "\n".join(lines)
    assert len(card) <= CHARACTERS
    return card


def escaped(text: str) -> str:
    """`text` as Markdown that shows it and nothing else, on one line, cut where it is long."""
    made = ""
    for mark in " ".join("".join(c if c.isprintable() else " " for c in text).split()):
        more = _ENTITIES.get(mark) or (f"\\{mark}" if mark in _MARKS else mark)
        if len(made) + len(more) > _VALUE_CHARACTERS:
            return made + "…"
        made += more
    return made


def _making(recipe: Recipe, index: int) -> Iterator[tuple[str, str]]:
    train, data = recipe.train, recipe.data
    yield "started from", escaped(f"{recipe.model.start}, {recipe.model.dtype}")
    parts = [f"the seed DPO ({train.seed_epochs} epochs)"] if train.seed_epochs else []
    parts += [f"{index - 1} self-retrospective rounds of {train.epochs} epochs"] if index > 1 else []
    done = ", then ".join(parts) or "nothing: it is the start itself"
    yield "trained by", f"{done}; iteration {index} of {recipe.iterations}"
    weights = "all weights" if train.lora_rank is None else f"LoRA of rank {train.lora_rank}, merged"
    yield "objective", f"DPO, beta {train.beta:g}, learning rate {train.learning_rate:g}, {weights}"
    yield "training data", escaped(f"{data.train}, {data.frames} frames a clip")
    yield "judge", _judge(recipe)


def _judge(recipe: Recipe) -> str:
    judge = recipe.judge
    if judge.by != "self":
        return _JUDGES[judge.by]
    orders = "both orders" if judge.orders == "both" else "one order"
    return f"{_JUDGES[judge.by]}, by {judge.verdict} in {orders}, with {_CONTEXTS[recipe.retrospect.context]}"


def _figures(recipe: Recipe, candidate: Candidate) -> Iterator[tuple[str, str]]:
    made, name = candidate.metrics, recipe.evaluate.dev
    yield "dev set", escaped(f"{name}: {recipe.data.sets[name]}, sha256 {candidate.dev_digest[:12]}")
    if candidate.dev_accuracy is None:
        yield "dev figures", "none yet: its evaluation is pending"
        return
    yield "dev accuracy", f"{_interval(made, 'accuracy', scale=100, digits=1)} %"
    if "score" in made:
        yield "dev score", _interval(made, "score", scale=1, digits=2)
    yield "graded by", escaped(candidate.grader)
    if "rows" in made:
        yield "questions", f"{made['rows']:.0f}, {made.get('unscored', 0):.0f} of them without a score"
    if "words" in made:
        yield "words an answer", f"{made['words']:.1f}"


def _interval(made: Mapping[str, float], key: str, *, scale: float, digits: int) -> str:
    value = f"{scale * made[key]:.{digits}f}" if key in made else "-"
    if f"{key}_low" not in made:
        return value
    low, high = (f"{scale * made[f'{key}_{end}']:.{digits}f}" for end in ("low", "high"))
    return f"{value} ({low} to {high})"


def _origin(candidate: Candidate) -> Iterator[tuple[str, str]]:
    yield "run", escaped(candidate.run_uri)
    yield "dataset", f"sha256 {escaped(candidate.dataset_digest[:12])}"
    if candidate.code_version:
        yield "code", escaped(candidate.code_version)
