"""Puts fake steps in the place of the real ones, in every process started with this folder on PYTHONPATH."""

import sys

import fake_steps

sys.modules["isr_dpo.steps"] = fake_steps
