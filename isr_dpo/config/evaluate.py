"""The recipe's sections `answer` and `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from isr_dpo.config.section import PLACE, Fraction, Name, Positive, Section

OFFICIAL_FILE = ".qa.official.jsonl"
ProtocolName = Literal["caption", "official"]


class Answer(Section):
    """Greedy answers for evaluation."""

    max_new_tokens: Positive = 1024  # [C]
    predictions: Annotated[Mapping[Name, str], PLACE] = Field(default_factory=dict)
    """In a benchmark, by a system that is not run here: each set's prediction file in the published format, or the
    answers of another run (answers/policy-pp/<set>). One path with `{set}` in it stands for them all. No model is
    loaded and no video decoded then."""


def by_set(tree: Any) -> Any:
    """A recipe's tree with `answer.predictions` written out for each set, where it is one path with `{set}` in it."""
    answer, data = (tree.get(key) if isinstance(tree, Mapping) else None for key in ("answer", "data"))
    path = answer.get("predictions") if isinstance(answer, Mapping) else None
    sets = data.get("sets") if isinstance(data, Mapping) else None
    if not isinstance(path, str) or not isinstance(answer, Mapping) or not isinstance(sets, Mapping):
        return tree
    if "{set}" not in path:
        raise ValueError(f"answer.predictions = {path!r}: one path for all sets has {{set}} in it")
    files = {name: path.replace("{set}", str(name)) for name in sets}
    return {**tree, "answer": {**answer, "predictions": files}}


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
    ledger: Annotated[str | None, PLACE] = None
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
