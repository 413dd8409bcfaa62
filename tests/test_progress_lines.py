"""A step's own lines among those of KFP: marked, on standard output, whatever was set up before."""

import subprocess
import sys

from isr_dpo.progress import MARK

CODE = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="[KFP Executor] %(message)s", level=logging.INFO)  # as KFP does first
from isr_dpo.progress import speak
speak()
speak()
logging.getLogger("isr_dpo").info("round 1 · judge")
logging.getLogger("isr_dpo.manifest").warning("two\\nlines")
logging.info("chatter")
"""


def test_lines_of_ours_are_marked_and_said_once() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"{MARK}round 1 · judge",
        f"{MARK}two",
        f"{MARK}lines",
        "[KFP Executor] chatter",
    ]
    assert done.stderr == ""
