"""The recipe: what a run does. This folder is the only home of defaults; the larger sections are files of their own.

A recipe is a YAML file. Unknown keys and impossible values are refused by name before anything is compiled or loaded.
Beside these keys a file may have `variants` (see `text`): the same recipe with a few keys changed, under another name.
Values are tagged by origin: [P] the paper, [C] public code the paper builds on, [O] our choice where both are silent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from isr_dpo.config.engine import Engine
from isr_dpo.config.evaluate import OFFICIAL_FILE, Answer, Evaluate, ProtocolName, by_set
from isr_dpo.config.section import PLACE, Fraction, Name, Positive, Section


class Model(Section):
    """The starting model and how it is held."""

    start: Annotated[str | None, PLACE] = None
    """The SFT model, policy-00: a folder, an s3:// URI, `hf://organisation/name[@revision]` of a hub, or
    `builtin:world` (the demo world's own). A benchmark of a served model or of prediction files needs none; a served
    model's frames are then not resized for any model."""
    registered_name: Name | None = None
    """Name of the registered model in MLflow; a benchmark registers nothing."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cpu_threads: Positive | None = None
    """On a CPU; none: as many as torch takes. Sums depend on it in their last digits, so a fixed number gives the same
    bytes on machines with other numbers of cores."""


class Data(Section):
    """Videos, training rows, evaluation sets. Paths are relative to the working directory, or s3:// URIs."""

    train: Annotated[str | None, PLACE] = None
    """JSONL in LLaVA-Hound's flat schema: id, video, prompt; chosen and rejected where a row is a seed preference. A
    benchmark reads none."""
    sets: Annotated[Mapping[Name, str], PLACE] = Field(default_factory=dict)
    """Evaluation sets by name: `<name>.qa.jsonl` files with captions, `<name>.qa.official.jsonl` without."""
    videos: Annotated[str | None, PLACE] = None
    """Where the videos of all these files lie, by path or by clip id, as `isr-dpo data fetch` leaves them; none: each
    beside the JSONL file that names it. A video is a file, a folder of frames, or a tar of these."""
    frames: Annotated[int, Field(ge=1)] = 8
    """Frames a clip, uniform over the clip, both ends included [C]."""
    max_unreadable_fraction: Fraction = 0.01
    """Above this share of unreadable videos prepare fails [O]; the paper's data has none stated."""
    workers: Positive = 2
    """Decoding threads."""


class Generate(Section):
    """Two responses a row."""

    temperature: Annotated[float, Field(gt=0, le=2)] = 0.7  # [P] section 3.1
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0  # [O]
    max_new_tokens: Positive = 512  # [O]


class Retrospect(Section):
    """The visual context c_t, one a distinct video."""

    context: Literal["none", "fixed", "renew", "retrospective", "shuffled"] = "retrospective"
    """Table 5's designs [P]; `none` is self-rewarding, `shuffled` gives the judge another video's description [O]."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7  # [O] the paper samples c_t, at no stated temperature
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0  # [O]
    max_new_tokens: Positive = 512  # [O]


class Judge(Section):
    """The policy chooses between its own two responses."""

    by: Literal["self", "random", "longer"] = "self"
    """`random` and `longer` are controls [O]."""
    verdict: Literal["logits", "text"] = "logits"
    """`logits`: the labels' probabilities at one position [O, as Lee et al.]; `text`: a sampled verdict [P]."""
    orders: Literal["both", "one"] = "both"
    """`both`: probabilities averaged over both orders of the responses [O, the same]."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    """Of a `text` verdict [O]."""
    tie_margin: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """A pair whose P(first) is within this of 0.5 is dropped as a tie [O]; exactly 0.5 always is."""
    drop_inconsistent: bool = False
    """Drop pairs whose winner changes with the order [O]."""
    min_label_mass: Fraction = 0.1
    """Below this total probability of the two labels the verdict counts as unparsed [O]."""


class Train(Section):
    """DPO (section 3.1). Defaults are LLaVA-Hound-DPO's [C] where not said otherwise."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    learning_rate: Annotated[float, Field(gt=0)] = 5e-7
    epochs: Positive = 1
    """Of a self-retrospective round [O]."""
    seed_epochs: Annotated[int, Field(ge=0)] = 3
    """Of the seed DPO that makes policy-01 [C]. 0: policy-01 is the start itself, which has had its own: a fork."""
    batch_pairs: Positive = 128
    """Pairs an optimiser step, over all ranks."""
    warmup_fraction: Fraction = 0.1
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    reference: Literal["round_start", "initial"] = "round_start"
    """`round_start` is the released trainer's default; the paper says "current base reference model"."""
    projector: bool = False
    """Train the projector too; frozen [C]."""
    lora_rank: Positive | None = None
    """Train adapters of this rank on the language model's linear layers instead of its weights, merged after each round
    [O: for small cards]; none: full parameters [P]."""
    lora_alpha: Annotated[float, Field(gt=0)] = 32.0
    """The adapters' scale is lora_alpha / lora_rank [O]."""
    max_bad_fraction: Fraction = 0.0
    """Share of pairs that may be left out because they cannot be trained on (empty, too long, only padding) [O]."""
    micro_batch_tokens: Positive = 8192
    """Tokens that one rank packs into one forward pass; a pair of Video-LLaVA-7B has about 2,400. Without checkpointing
    about 5.9 MB a token on Video-LLaVA-7B."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: a third more work, for a fraction of the memory."""
    ranks: Positive | None = None
    """Processes on this machine; none: one a GPU, or one on a CPU. More than one, or a GPU: DeepSpeed."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What DeepSpeed's ranks split: nothing, optimiser states, and gradients [C], and weights."""
    accumulate_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of gradients summed over micro-batches under DeepSpeed."""
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 15.0
    """Between two points of resumption; 0: after every optimiser step."""
    allow_rounded_start: bool = False
    """Go on from a policy whose fp32 masters are gone, although its stored weights hold only a part of its update."""
    cache_features: bool = True
    """Keep what the frozen vision tower gives on the local disk, 4.2 MB a clip of Video-LLaVA-7B."""
    peak_tflops: Annotated[float, Field(gt=0)] | None = None
    """A device's peak that MFU and "x of the floor" refer to; none: by the GPU's name, or measured on a CPU."""


class Guards(Section):
    """Limits that stop a loop that is dying [O]."""

    min_pair_fraction: Fraction = 0.05
    """Of rows that yield a preference."""
    min_order_consistency: Fraction = 0.0
    """Share of judged pairs whose winner is the same in both orders."""
    max_chosen_growth: Annotated[float, Field(gt=1)] = 4.0
    """Mean words of chosen responses against round 1."""


class Promote(Section):
    """What a version must show on the dev set to follow the champion [O]. Gains are differences of accuracy, candidate
    minus champion, between -1 and 1, paired over the questions that are scored in both."""

    min_gain: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """The mean gain, at least."""
    min_gain_low: Annotated[float, Field(ge=-1, le=1)] = -0.02
    """The lower end of its 95 % interval, at least. Of 2,000 questions with a fifth of the answers changing sides the
    interval reaches 0.02 to either side: a loss that large is then ruled out, and fewer questions must show a gain to
    say as much."""
    max_words_ratio: Annotated[float, Field(gt=0)] = 1.5
    """Mean words of an answer against the champion's: length alone buys grades."""
    max_unscored_fraction: Fraction = 0.02
    """Of the answers, candidate's or champion's, that the grader gave no score."""


class Tracking(Section):
    """MLflow."""

    uri: str = "sqlite:///runs/mlflow.db"
    experiment: str = "isr-dpo"


class Recipe(Section):
    """A whole run."""

    name: Name
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    iterations: Annotated[int, Field(ge=0, le=99)] = 9
    """Policies trained [P]: policy-01 by seed DPO, the rest by self-retrospective rounds. 0: a benchmark, which trains
    nothing and evaluates model.start on all sets as policy-00."""
    prompts: Annotated[str, PLACE] = "lmm"
    """A packaged prompt set, or a folder of the user's: a path with a `/`, or an s3:// URI."""
    max_gpu_hours: Annotated[float, Field(gt=0)] | None = None
    """GPU-hours, allocated, above whose estimate a run is refused before it is submitted; none: no limit."""
    model: Model = Model()
    data: Data
    engine: Engine = Engine()
    generate: Generate = Generate()
    retrospect: Retrospect = Retrospect()
    judge: Judge = Judge()
    train: Train = Train()
    answer: Answer = Answer()
    evaluate: Evaluate = Evaluate()
    guards: Guards = Guards()
    promote: Promote = Promote()
    tracking: Tracking = Tracking()

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, tree: Any) -> Any:
        return by_set(tree)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        sets = sorted(self.data.sets)
        unknown = sorted(self.evaluate.protocols.keys() - self.data.sets.keys())
        if unknown:
            raise ValueError(f"evaluate.protocols names {unknown}, data.sets has {sets}")
        if self.is_benchmark:
            self._check_benchmark()
            return self
        if self.evaluate.dev not in self.data.sets:
            raise ValueError(f"evaluate.dev names {self.evaluate.dev!r}, data.sets has {sets}")
        needed = {
            "data.train": self.data.train,
            "model.start": self.model.start,
            "model.registered_name": self.model.registered_name,
        }
        for key, value in needed.items():
            if value is None:
                raise ValueError(f"{key} is missing; only a benchmark (iterations: 0) needs none")
        if self.engine.kind == "openai":
            raise ValueError(
                "engine.kind 'openai' asks a model that is served elsewhere, which training here does not change: a "
                f"baseline, to be answered for and evaluated with iterations: 0, not {self.iterations}"
            )
        if self.answer.predictions:
            raise ValueError(
                "answer.predictions are answers of a system that is not run here, so nothing can be trained: evaluate "
                f"them with iterations: 0, not {self.iterations}"
            )
        return self

    def _check_benchmark(self) -> None:
        sets, given = sorted(self.data.sets), sorted(self.answer.predictions)
        if not sets:
            raise ValueError("data.sets is empty: a benchmark (iterations: 0) needs a set to evaluate")
        if given and given != sets:
            raise ValueError(f"answer.predictions has {given}, data.sets has {sets}: a file for each set, and no other")
        if given and self.model.start is not None:
            raise ValueError(
                f"model.start ({self.model.start}) and answer.predictions both say who answers: leave one of them out"
            )
        if not given and self.model.start is None and self.engine.kind != "openai":
            raise ValueError(
                "nobody answers: a benchmark (iterations: 0) needs model.start, a served model (engine.kind: openai) "
                "or answer.predictions"
            )

    @property
    def is_benchmark(self) -> bool:
        """Trains nothing: policy-00 is answered for and evaluated."""
        return self.iterations == 0

    @property
    def policies(self) -> range:
        """The indices of the policies that are evaluated and shown: 1 to the last; of a benchmark 0 alone."""
        return range(0 if self.is_benchmark else 1, self.iterations + 1)

    def sets_at(self, policy: int) -> list[str]:
        """The sets that a policy is answered for and evaluated on, sorted."""
        everything = self.is_benchmark or policy in self.evaluate.full_at
        return sorted(self.data.sets) if everything else [self.evaluate.dev]

    @property
    def leading_set(self) -> str:
        """The set whose figures stand first: dev, or of a benchmark without one the first by name."""
        return self.evaluate.dev if self.evaluate.dev in self.data.sets else min(self.data.sets)

    @property
    def data_read(self) -> Data:
        """The data without what this run never looks at. More iterations do not change it, so a run can be extended."""
        if self.is_benchmark:
            return self.data.model_copy(update={"train": None})
        used = self.data.sets if self.evaluate.full_at else {self.evaluate.dev: self.data.sets[self.evaluate.dev]}
        return self.data.model_copy(update={"sets": used})

    @property
    def places(self) -> dict[str, str]:
        """By dotted key, the paths and URIs of what this run reads and writes; a packaged prompt set has none."""
        read = self.model_copy(update={"data": self.data_read})
        return {key: uri for key, uri in _places(read) if uri is not None and (key != "prompts" or "/" in uri)}

    def protocol(self, set_name: str) -> ProtocolName:
        """How answers to a set are graded."""
        by_file: ProtocolName = "official" if self.data.sets[set_name].endswith(OFFICIAL_FILE) else "caption"
        return self.evaluate.protocols.get(set_name, by_file)

    def canonical(self) -> str:
        """The recipe as one line of JSON, the form in which it travels."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    def digest(self) -> str:
        """sha256 of `canonical()`."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def section(self, keys: tuple[str, ...]) -> dict[str, Any]:
        """The values at dotted `keys`, `{"generate.temperature": 0.7, ...}`; a key of a section gives all in it."""
        flat = flatten(self.model_dump(mode="json"))
        return {k: v for k, v in flat.items() if any(k == key or k.startswith(key + ".") for key in keys)}


def _places(section: Section, prefix: str = "") -> Iterator[tuple[str, str | None]]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if PLACE in field.metadata:
            yield from flatten({name: value}, prefix).items()
        elif isinstance(value, Section):
            yield from _places(value, f"{prefix}{name}.")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat
