"""One thin KFP component a step: a docstring, one import, one call. What a step does lives in `isr_dpo.steps`."""
