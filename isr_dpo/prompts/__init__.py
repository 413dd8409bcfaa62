"""Prompt templates: one text file a template, each saying where it comes from.

A file is a YAML head (`source`, and for judges `rationale_tokens` and `cue`), a line `---`, and the text with
`{fields}`. Everything inserted is data: a field's value is never expanded again, and model text is cleaned of the
template's own delimiters first (`clean`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

import yaml

from isr_dpo.errors import RecipeError
from isr_dpo.stores import Missing, join, read_bytes

NAMES = ("answer", "describe", "refine", "judge", "judge_context")
_FIELDS = {
    "answer": {"question"},
    "describe": set[str](),
    "refine": {"context"},
    "judge": {"question", "answer_1", "answer_2"},
    "judge_context": {"question", "answer_1", "answer_2", "context"},
}
_FIELD = re.compile(r"\{(\w+)\}")
# What could be read as structure: special tokens, chat roles, media placeholders, and the templates' own option labels.
_DELIMITERS = re.compile(
    r"<\|[^|>]{0,40}\|>|</?s>|<(?:video|image|pad|unk)>|\[/?INST\]|^\s*(?:USER|ASSISTANT|SYSTEM)\s*:|^\s*Answer\s*[12]\s*:",
    re.IGNORECASE | re.MULTILINE,
)
# What speaks to a judge instead of answering: a verdict of its own, or orders.
_AT_THE_JUDGE = re.compile(
    r"\b(?:answer|response|option)\s*[12]\s+is\s+(?:clearly\s+|obviously\s+)?(?:the\s+)?"
    r"(?:best|better|correct|right|preferred|worse|worst|wrong)\b"
    r"|\b(?:prefer|choose|pick|select|vote\s+for)\s+(?:answer|response|option)\s*[12]\b"
    r"|\b(?:preferred|better|best)\s+(?:answer|response)\s*:\s*[12]\b"
    r"|\b(?:ignore|disregard|forget)\s+(?:all\s+|any\s+)?(?:the\s+)?(?:previous|prior|above)\s+instructions\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Template:
    """One prompt. `cue` and `rationale_tokens` (tokens) belong to judges: after at most that many tokens of rationale
    the cue is appended and the labels' probabilities are read at the next position (0: no rationale)."""

    name: str
    text: str
    source: str
    rationale_tokens: int = 0
    cue: str = ""

    def render(self, **values: str) -> str:
        """The prompt with every field replaced, in one pass."""
        return _FIELD.sub(lambda match: clean(values[match.group(1)]), self.text)


@dataclass(frozen=True)
class Prompts:
    """The five templates of a run and their digest (sha256 of all files)."""

    answer: Template
    describe: Template
    refine: Template
    judge: Template
    judge_context: Template
    digest: str


def clean(text: str) -> str:
    """`text` without the delimiters a template or a chat format gives meaning to, blanks at its ends removed."""
    previous = None
    while previous != text:
        previous, text = text, _DELIMITERS.sub(" ", text)
    return text.strip()


def hostile(text: str) -> bool:
    """Whether model text holds a template's delimiters or speaks to the judge. Such a response makes no preference [O]:
    training on it would teach the policy to sway its judge."""
    return bool(_DELIMITERS.search(text) or _AT_THE_JUDGE.search(text))


def load(name: str) -> Prompts:
    """The prompt set `name`: a folder of this package (`lmm`, `world`), or the path or s3:// URI of one of the user's.

    Raises:
        RecipeError: no such set, a template is missing, or a template's fields are not the ones it is given.
    """
    packaged = sorted(e.name for e in resources.files(__name__).iterdir() if e.is_dir() and e.name[0] not in "._")
    if "/" not in name and name not in packaged:
        raise RecipeError(
            f"prompts: {name!r} is neither a packaged set ({', '.join(packaged)}) nor a folder path with a '/'"
        )
    root = name if "/" in name else str(resources.files(__name__) / name)
    files: Mapping[str, str] = {n: _read(join(root, f"{n}.txt"), name) for n in NAMES}
    digest = hashlib.sha256("\0".join(f"{n}\0{t}" for n, t in sorted(files.items())).encode()).hexdigest()
    return Prompts(**{n: _parse(n, t) for n, t in files.items()}, digest=digest)


def _read(uri: str, name: str) -> str:
    try:
        return read_bytes(uri).decode().replace("\r\n", "\n")
    except Missing:
        file = uri.rpartition("/")[2]
        raise RecipeError(
            f"prompts: set {name!r} has no {file}; a set holds {', '.join(n + '.txt' for n in NAMES)}"
        ) from None


def _parse(name: str, content: str) -> Template:
    head, separator, text = content.partition("\n---\n")
    if not separator:
        raise RecipeError(f"prompts: {name}.txt has no '---' line between its head and its text")
    template = Template(name=name, text=text.strip("\n"), **yaml.safe_load(head))
    fields = set(_FIELD.findall(template.text))
    if fields != _FIELDS[name]:
        raise RecipeError(f"prompts: {name}.txt uses fields {sorted(fields)}, it is given {sorted(_FIELDS[name])}")
    return template
