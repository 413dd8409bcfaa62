"""Outputs to try manifests on."""

from isr_dpo import outputs
from isr_dpo.manifest import Manifest, Origin
from isr_dpo.outputs import Output

ORIGIN = Origin(
    kind="responses",
    step="generate",
    inputs={"policy": "p" * 64, "dataset": "d" * 64},
    recipe_section_digest="r" * 64,
    prompts_digest="q" * 64,
)
FILES = {"part-00000.jsonl": b"one\n", "part-00001.jsonl": b"two\nthree\n", "metrics.json": b"{}"}


def opened(uri: str, origin: Origin = ORIGIN) -> Output:
    output = outputs.begin(uri, origin)
    assert isinstance(output, Output)
    return output


def finish(uri: str, origin: Origin = ORIGIN, files: dict[str, bytes] = FILES) -> Manifest:
    output = opened(uri, origin)
    for name in files.keys() - output.done:
        output.write(name, files[name])
    return output.seal(rows=3, deterministic=True)
