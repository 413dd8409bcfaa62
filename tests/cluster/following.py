"""A step that follows a TrainJob, as a process of its own: it can be told to stop, and killed."""

from __future__ import annotations

import sys

from isr_dpo.cluster import kube, watch
from isr_dpo.cluster.train_job import Pods, train_job
from isr_dpo.errors import IsrDpoError
from isr_dpo.progress import speak

PODS = Pods(image="registry.example/isr-dpo-train@sha256:" + "0" * 64, nodes=2, gpus=8, deadline_minutes=60)


def main() -> int:
    speak()
    job = train_job("isr-dpo-train-01-0123456789", PODS, ["{}"], ranks=8, run_id="run-1")
    try:
        watch.run(kube.open_cluster(), job, on_line=lambda line: print("node 0 |", line, flush=True))
    except IsrDpoError as error:
        print(type(error).__name__, error, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
