"""A recipe from text, and what to say of one that is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from isr_dpo.config.recipe import Recipe
from isr_dpo.config.section import Section
from isr_dpo.errors import RecipeError

VARIANTS = "variants"
"""The key under which a recipe file has its variants: `name: {dotted.key: value, ...}`. No key of the recipe."""


def parse(text: str, *, where: str = "recipe", variant: str | None = None, changes: Sequence[str] = ()) -> Recipe:
    """A recipe from YAML or JSON text: with the keys of its `variant` and then `changes` such as `train.beta=0.2` made
    to it.

    Raises:
        RecipeError: naming `where`, every offending key with its value, and the accepted keys, values or variants.
    """
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"{where}: a recipe is a mapping of keys, this is {type(tree).__name__}")
    variants = _variants(tree.pop(VARIANTS, {}), where)
    if variant is not None:
        _vary(tree, variants, variant, where)
    for change in changes:
        _change(tree, change)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(dict(e)) for e in error.errors()]
        raise RecipeError("\n".join(f"{where}: {line}" for line in lines)) from error


def load(path: str | Path, *, variant: str | None = None, changes: Sequence[str] = ()) -> Recipe:
    """The recipe in the file `path`, as `parse` makes it. Raises RecipeError."""
    path = Path(path)
    try:
        return parse(path.read_text(encoding="utf-8"), where=str(path), variant=variant, changes=changes)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error


def _variants(found: Any, where: str) -> dict[str, dict[str, Any]]:
    """Checked: names that can end a recipe's name, each with keys written as a change writes them."""
    if not isinstance(found, dict):
        raise RecipeError(f"{where}: {VARIANTS} is a mapping of names, this is {type(found).__name__}")
    for name, keys in found.items():
        if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys):
            raise RecipeError(f"{where}: {VARIANTS}.{name} is a mapping of dotted keys, such as {{train.beta: 0.2}}")
    return {str(name): keys for name, keys in found.items()}


def _vary(tree: dict[str, Any], variants: Mapping[str, Mapping[str, Any]], variant: str, where: str) -> None:
    """The variant's keys, and a name, of recipe and registered model, of its own: no variant of a model is a candidate
    for the other's place."""
    if variant not in variants:
        known = f"there are: {', '.join(variants)}" if variants else "it has none"
        raise RecipeError(f"{where}: no variant {variant!r}; {known}")
    for key, value in variants[variant].items():
        _set(tree, key, value, f"{where}: variant {variant!r}")
    model = tree.get("model")
    for section, key in ((tree, "name"), (model, "registered_name")):
        if isinstance(section, dict) and section.get(key) is not None:
            section[key] = f"{section[key]}-{variant}"


def _change(tree: dict[str, Any], change: str) -> None:
    """Sets a dotted key of `tree`; the value is read as YAML."""
    key, equals, value = change.partition("=")
    if not key or not equals:
        raise RecipeError(f"change {change!r}: written as key=value, such as train.beta=0.2")
    try:
        _set(tree, key, yaml.safe_load(value), f"change {change!r}")
    except yaml.YAMLError as error:
        raise RecipeError(f"change {change!r}: the value is not YAML") from error


def _set(tree: dict[str, Any], key: str, value: Any, who: str) -> None:
    *sections, name = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise RecipeError(f"{who}: {section} is a value, not a section")
    tree[name] = value


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
