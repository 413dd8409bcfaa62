"""Iterative self-retrospective DPO for video LMMs (ISR-DPO, AAAI 2025)."""
