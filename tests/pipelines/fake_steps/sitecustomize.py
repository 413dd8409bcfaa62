"""Puts fake steps in the place of the real ones, in every process started with this folder on PYTHONPATH. Modules of
the package `isr_dpo.steps` are the real ones."""

import sys
from pathlib import Path

import fake_steps

import isr_dpo

fake_steps.__path__ = [str(Path(isr_dpo.__file__).parent / "steps")]
sys.modules["isr_dpo.steps"] = fake_steps
