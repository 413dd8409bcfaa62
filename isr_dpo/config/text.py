"""A recipe from text, and what to say of one that is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from isr_dpo.config.recipe import Recipe
from isr_dpo.config.section import Section
from isr_dpo.errors import RecipeError


def parse(text: str, *, where: str = "recipe", changes: Sequence[str] = ()) -> Recipe:
    """A recipe from YAML or JSON text, with `changes` such as `train.beta=0.2` made to it.

    Raises:
        RecipeError: naming `where`, every offending key with its value, and the accepted keys or values.
    """
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"{where}: a recipe is a mapping of keys, this is {type(tree).__name__}")
    for change in changes:
        _change(tree, change)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(dict(e)) for e in error.errors()]
        raise RecipeError("\n".join(f"{where}: {line}" for line in lines)) from error


def load(path: str | Path, *, changes: Sequence[str] = ()) -> Recipe:
    """The recipe in the file `path`, with `changes` made to it. Raises RecipeError."""
    path = Path(path)
    try:
        return parse(path.read_text(encoding="utf-8"), where=str(path), changes=changes)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error


def _change(tree: dict[str, Any], change: str) -> None:
    """Sets a dotted key of `tree`; the value is read as YAML."""
    key, equals, value = change.partition("=")
    if not key or not equals:
        raise RecipeError(f"change {change!r}: written as key=value, such as train.beta=0.2")
    *sections, name = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise RecipeError(f"change {change!r}: {section} is a value, not a section")
    try:
        tree[name] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"change {change!r}: the value is not YAML") from error


def _explain(error: dict[str, Any]) -> str:
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        parent = _section_at(error["loc"][:-1])
        return f"unknown key {location!r}; accepted here: {', '.join(parent.model_fields)}"
    if error["type"] == "missing":
        return f"{location} is missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{location} = {error['input']!r}: {message}" if location else message


def _section_at(location: tuple[Any, ...]) -> type[Section]:
    section: type[Section] = Recipe
    for part in location:
        annotation = section.model_fields[str(part)].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, Section)
        section = annotation
    return section
