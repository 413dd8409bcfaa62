"""The recipe: `recipe`, `engine` and `evaluate` hold every key with its default, `text` reads one, `steps` says what
depends on which key."""

from isr_dpo.config.engine import VLLM, Engine
from isr_dpo.config.evaluate import Answer, Evaluate
from isr_dpo.config.recipe import (
    Data,
    Generate,
    Guards,
    Judge,
    Model,
    Promote,
    Recipe,
    Retrospect,
    Tracking,
    Train,
    flatten,
)
from isr_dpo.config.section import Section
from isr_dpo.config.steps import PROMPTED, SECTIONS
from isr_dpo.config.text import load, parse

__all__ = [
    "PROMPTED",
    "SECTIONS",
    "VLLM",
    "Answer",
    "Data",
    "Engine",
    "Evaluate",
    "Generate",
    "Guards",
    "Judge",
    "Model",
    "Promote",
    "Recipe",
    "Retrospect",
    "Section",
    "Tracking",
    "Train",
    "flatten",
    "load",
    "parse",
]
