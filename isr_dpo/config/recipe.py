"""The recipe: what a run does. The only home of defaults.

A recipe is a YAML file. Unknown keys and impossible values are refused by name before anything is compiled or loaded.
Values are tagged by origin: [P] the paper, [C] public code the paper builds on, [O] our choice where both are silent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
OFFICIAL_FILE = ".qa.official.jsonl"
ProtocolName = Literal["caption", "official"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Section(BaseModel):
    """A frozen part of the recipe; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Model(Section):
    """The starting model and how it is held."""

    start: str | None = None
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

    train: str | None = None
    """JSONL in LLaVA-Hound's flat schema: id, video, prompt; chosen and rejected where a row is a seed preference. A
    benchmark reads none."""
    sets: Mapping[Name, str] = Field(default_factory=dict)
    """Evaluation sets by name: `<name>.qa.jsonl` files with captions, `<name>.qa.official.jsonl` without."""
    videos: str | None = None
    """Where the videos of all these files lie, by path or by clip id, as `isr-dpo data fetch` leaves them; none: each
    beside the JSONL file that names it. A video is a file, a folder of frames, or a tar of these."""
    frames: Annotated[int, Field(ge=1)] = 8
    """Frames a clip, uniform over the clip, both ends included [C]."""
    max_unreadable_fraction: Fraction = 0.01
    """Above this share of unreadable videos prepare fails [O]; the paper's data has none stated."""
    workers: Positive = 2
    """Decoding threads."""


class VLLM(Section):
    """How vLLM runs a policy. The defaults are for a 7B model in bf16 on an A100 of 80 GB [O]."""

    memory_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Of the GPU's memory, 72 GB: 14 hold the weights, some 4 a step's activations, the rest keys and values: 100,000
    tokens of Video-LLaVA-7B (0.5 MB each), 900,000 of Qwen2.5-VL-7B, which shares its heads."""
    context_tokens: Positive | None = 8192
    """Prompt and answer together, where the model's own limit is not lower; none: the model's own. A model of 128,000
    would have memory measured, and set aside, for a video as long as that."""
    batch_tokens: Positive = 16384
    """Tokens in one step: seven prompts of Video-LLaVA-7B. More saves nothing once the GPU is busy, and costs memory
    that keys and values would have."""
    sequences: Positive = 256
    """Texts written at the same time; memory for keys and values ends them sooner than this with a model that does not
    share its heads."""
    batch_invariant: bool = False
    """vLLM's batch-invariant kernels (GPUs of compute capability 8.0 and later, at a cost in speed): a text then does
    not depend on what shares its batch."""
    cpu_cache_gb: Positive = 1
    """Memory for keys and values where there is no GPU."""


class Engine(Section):
    """Who runs the policy for generate, retrospect, judge and answer."""

    kind: Literal["hf", "vllm", "openai", "fake"] = "hf"
    """`hf`: embedded, transformers; `openai`: a model that is served elsewhere, as a baseline."""
    batch_rows: Positive = 64
    """Sequences in one forward pass."""
    vllm: VLLM = VLLM()
    model: str | None = None
    """Of an `openai` engine: the name that its server has for the model."""
    base_url: str | None = None
    """Of an OpenAI-compatible server; none: the openai package's default. The key is OPENAI_API_KEY's."""
    video_as: Literal["images", "video"] = "images"
    """How an `openai` engine sends a clip: an image a frame, or one video part, which vLLM and SGLang take."""
    concurrency: Positive = 16
    """Requests of an `openai` engine at a time."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 300.0
    """For one answer of an `openai` engine."""
    rows_per_part: Positive = 256
    """Rows between two points of resumption; in a fused round videos with their rows."""
    workers: Positive | None = None
    """Engines of a pod, each in a process of its own; none: one a GPU, or one on a CPU. On a CPU, workers times
    model.cpu_threads should be its cores."""
    pods: Positive = 1
    """Above 1: generate, retrospect, judge and answer are fanned out over so many pods; one more task seals what these
    have made."""
    fused: bool = Field(default_factory=lambda engine: engine["kind"] == "vllm")
    """A round's generate, retrospect and judge as one step, `prefer`: one engine, which asks all about a video while it
    holds it. Pays where the engine keeps the prompts it has computed, so with vLLM it is the default; the rows are the
    same."""
    fused_videos: Positive = 32
    """Of a fused round: videos in hand, as many as the engine's cache of prompts holds. Video-LLaVA-7B on an A100: 40
    with 2,500 tokens each [O]."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.kind == "openai" and self.model is None:
            raise ValueError("kind 'openai' needs engine.model, the name that the server has for the model")
        return self


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
    """`logits`: the labels' probabilities at one position [P, by Lee et al.]; `text`: a sampled verdict."""
    orders: Literal["both", "one"] = "both"
    """`both`: probabilities averaged over both orders of the responses [P, by Lee et al.]."""
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
    seed_epochs: Positive = 3
    """Of the seed DPO that makes policy-01 [C]."""
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
    about 4.6 MB a token on the 7B model."""
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


class Answer(Section):
    """Greedy answers for evaluation."""

    max_new_tokens: Positive = 1024  # [C]
    predictions: Mapping[Name, str] = Field(default_factory=dict)
    """In a benchmark, by a system that is not run here: each set's prediction file in the published format, or the
    answers of another run (answers/policy-pp/<set>). No model is loaded and no video decoded then."""


class Evaluate(Section):
    """Answers to the evaluation sets, scored by a grader."""

    grader: Literal["rules", "openai"] = "rules"
    """`rules`: the packaged rule-based grader, no model; `openai`: any OpenAI-compatible endpoint, its key from the
    environment (OPENAI_API_KEY)."""
    model: str = "gpt-4o-mini"
    base_url: str | None = None
    """Of an OpenAI-compatible server; none: the openai package's default (OPENAI_BASE_URL or OpenAI's own)."""
    protocols: Mapping[Name, ProtocolName] = Field(default_factory=dict)
    """By set, where the file's name does not say it: `official` for `*.qa.official.jsonl`, else `caption`."""
    reading: Literal["strict", "compat"] = "strict"
    """How replies become `accuracy` and `score`: `strict` leaves one that is not in the asked form unscored, `compat`
    reads as the public scripts do [C]. The figures of both stand in every evaluation."""
    dev: Name = "dev"
    """The set that selects the best policy; graded for every policy. A benchmark grades all sets and selects none."""
    full_at: tuple[Positive, ...] = (1, 5, 9)
    """Policies whose answers to all sets are graded, as in the paper's tables [P]; without any, the sets beside dev
    are not even decoded."""
    required: bool = False
    """True: a grader that stays away fails the run; False: the evaluation is left pending and training goes on."""
    concurrency: Positive = 8
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    structured: Literal["auto", "on", "off"] = "auto"
    """Ask for replies by JSON schema (`response_format`); `auto`: as long as the server does not refuse that."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 0.0
    """[C]; none: not sent, for models that refuse it."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = 0
    """None: not sent."""
    reply_limit: Literal["max_tokens", "max_completion_tokens", "none"] = "max_tokens"
    """The parameter that bounds a reply's tokens: models that think before they answer take `max_completion_tokens`
    alone. `none`: not sent."""
    reply_tokens: Positive | None = None
    """That bound; none: the protocol's own. What a model thinks counts, too."""
    reasoning_effort: str | None = None
    """Of models that think before they answer; none: not sent."""
    ledger: str | None = None
    """Where bought grades are kept, so that none is bought twice; none: `ledger` beside the run, shared by all runs of
    a folder."""
    max_requests: Annotated[int, Field(ge=0)] | None = None
    """Requests that this run may send to the grader, over all its restarts; a repeated attempt counts."""
    max_cost_usd: Annotated[float, Field(ge=0)] | None = None
    """What this run may spend on the grader, over all its restarts; needs the prices."""
    price_prompt_usd: Annotated[float, Field(ge=0)] | None = None
    """For a million prompt tokens."""
    price_completion_usd: Annotated[float, Field(ge=0)] | None = None
    """For a million completion tokens."""
    batch: bool = False
    """Buy through OpenAI's Batch API: cheaper, within a day."""
    batch_discount: Fraction = 0.5
    """What `batch` takes off the prices."""
    batch_hours: Annotated[float, Field(ge=0)] = 24.0
    """How long evaluate waits for a batch; after that the evaluation is pending while the batch goes on. 0: it is only
    ordered."""

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.max_cost_usd is None:
            return self
        for key in ("price_prompt_usd", "price_completion_usd"):
            if getattr(self, key) is None:
                raise ValueError(f"max_cost_usd is {self.max_cost_usd:g}, but no {key} says what a grade costs")
        if self.reply_limit == "none":
            raise ValueError(f"max_cost_usd is {self.max_cost_usd:g}, but with reply_limit: none a reply has no bound")
        return self


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
    prompts: str = "lmm"
    """A packaged prompt set, or a folder path."""
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


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat
