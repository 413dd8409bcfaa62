"""The trainer's own worker, with every checkpoint kept: a test reads the first gradient from the first of them."""

from __future__ import annotations

from isr_dpo.dpo import checkpoint, worker

if __name__ == "__main__":
    checkpoint.KEPT = 1000
    worker.main()
