"""torchrun, in a process that reports what became of its ranks and does not outlive the step that started it.

    python -m isr_dpo.dpo.torchrun REPORT LAUNCHER_PID TORCHRUN_ARGUMENT...

torchrun ends the other ranks when one fails and prints which; `REPORT` says the same to a program:
`[{"rank": 1, "exit_code": -9, "seconds": 1780000000}, ...]`, with the time at which each end was seen.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from isr_dpo.orphans import die_with

TORCHRUN_PID = "ISR_DPO_TORCHRUN_PID"
"""Environment variable by which a rank knows the process that it must not outlive."""


def main() -> int:
    """0 when every rank ended well."""
    report, launcher, *arguments = sys.argv[1:]
    die_with(int(launcher))
    os.environ[TORCHRUN_PID] = str(os.getpid())
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.main(arguments)
    except ChildFailedError as error:
        found = [
            {"rank": rank, "exit_code": failure.exitcode, "seconds": failure.timestamp}
            for rank, failure in error.failures.items()
        ]
        Path(report).write_text(json.dumps(found), encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
