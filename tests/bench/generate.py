"""A round's preferences by four engines, on the same rows and the same random policy: rows a second, and prompt tokens
computed against those needed.

    python -m tests.bench.generate [--setting answers|video|small] [--repeats N] [--vllm PYTHON]

`batch1` is transformers' `generate` a sample at a time, as the public scripts do it; `hf` our embedded engine; `vllm`
the three stages on vLLM; `fused` the step prefer on it. Each is a process of its own, one after the other; all must
write the same greedy text and give the same probabilities, or there is no result. vLLM has an environment of its own
(`make test-vllm` builds it); where there is none, its sides are left out. Needs a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.bench.generate_setup import SETTINGS, Sizes

VLLM = Path(".venv-vllm/bin/python")
SIDES = ("batch1", "hf", "vllm", "fused")
TOLERANCE = {"cpu": 1e-3, "cuda": 0.05}
"""Of a label's probability: fp32 on a CPU, bf16 on a GPU."""


def main() -> None:
    options = _options()
    names = ["answers", "video"] if options.setting == "both" else [options.setting]
    for name in names:
        sizes = replace(SETTINGS[name], family=options.family)
        sizes = replace(sizes, rows=options.rows or sizes.rows)
        with tempfile.TemporaryDirectory() as folder:
            _draw(Path(folder), sizes)
            found = {side: _run(side, Path(folder), options) for side in _sides(options)}
        check(found, tolerance=TOLERANCE[options.device])
        print(report(name, sizes, found), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=["both", *SETTINGS], default="both")
    parser.add_argument("--family", default=Sizes.family)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--vllm", type=Path, default=VLLM, metavar="PYTHON", help="of vLLM's environment")
    parser.add_argument("--device", choices=TOLERANCE, default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


def _sides(options: argparse.Namespace) -> list[str]:
    if options.vllm.exists():
        return list(options.sides)
    print(f"no vLLM: {options.vllm} is not there", file=sys.stderr)
    return [side for side in options.sides if side in ("batch1", "hf")]


def _draw(folder: Path, sizes: Sizes) -> None:
    """The policy, by a process of its own, so that this one stays small and quiet."""
    code = "import sys; from pathlib import Path; from tests.bench.generate_setup import Shape, Sizes, write; "
    code += f"write(Path(sys.argv[1]), {sizes!r})"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, stdout=sys.stderr)


def _run(side: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    python = options.vllm.absolute() if side in ("vllm", "fused") else sys.executable
    command = [python, "-m", "tests.bench.generate_side", side, folder]
    command += ["--repeats", options.repeats, "--device", options.device]
    root = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        "PYTHONPATH": root,
        "OMP_NUM_THREADS": str(options.threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TORCHDYNAMO_DISABLE": "1",  # on a CPU vLLM's compiled graphs cost minutes; no other side compiles anything
    }
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, env=environment, cwd=root, text=True)
    if done.returncode:
        raise SystemExit(f"generate: {side} ended with exit code {done.returncode}; its messages are above")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check(found: Mapping[str, Mapping[str, Any]], *, tolerance: float) -> None:
    """Raises SystemExit: the sides do not run the same policy."""
    first, *others = found
    expected = found[first]["check"]
    for side in others:
        given = found[side]["check"]
        pairs = zip(given["probabilities"], expected["probabilities"], strict=True)
        if given["text"] != expected["text"] or any(abs(one - other) > tolerance for one, other in pairs):
            raise SystemExit(f"generate: {side} gives {given}, {first} gives {expected}")


def report(name: str, sizes: Sizes, found: Mapping[str, Mapping[str, Any]]) -> str:
    """The table, and the lines that are quoted."""
    shape = sizes.shape
    lines = [
        f"setting {name}: {sizes.family}, {shape.layers} layers of width {shape.hidden}; {sizes.rows} rows, as many "
        f"clips ({sizes.batch1_rows} for batch1, {sizes.hf_rows} for hf), {sizes.new_tokens} new tokens a text",
        f"{'':10}{'rows/s':>10}{'min':>10}{'max':>10}{'written a row':>15}{'prompt tokens a row':>21}{'needed':>10}",
    ]
    rates = {side: [r["rows"] / r["seconds"] for r in made["rounds"]] for side, made in found.items()}
    spent = {}
    for side, made in found.items():
        rows = sum(r["rows"] for r in made["rounds"])
        written, computed, needed = (
            sum(r[k] for r in made["rounds"]) / rows for k in ("written", "computed", "needed")
        )
        spent[side] = computed / needed
        rate = statistics.median(rates[side])
        lines.append(
            f"{side:10}{rate:10.3f}{min(rates[side]):10.3f}{max(rates[side]):10.3f}"
            f"{written:15.0f}{computed:21.0f}{needed:10.0f}"
        )
    middle = {side: statistics.median(values) for side, values in rates.items()}
    lines.append("")
    for side in found:
        ratio = f" ratio={middle[side] / middle['batch1']:.2f}" if "batch1" in middle else ""
        stage = f" by_stage={middle[side] / middle['vllm']:.2f}" if side == "fused" and "vllm" in middle else ""
        lines.append(f"generate setting={name} engine={side}{ratio}{stage} prefill={spent[side]:.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
