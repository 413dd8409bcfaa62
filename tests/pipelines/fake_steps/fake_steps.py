"""Steps that make the files of a run without a model, and fail, die or wait where the environment says so."""

import json
import os
import time
from pathlib import Path


def execute(name, recipe, run_uri, run_id, index, inputs, output, metrics, *, expected_digest=None, share=0):
    from isr_dpo import config, layout, orphans
    from isr_dpo.errors import DataError
    from isr_dpo.stores.lock import owner

    orphans.die_with(int(os.environ[orphans.DRIVER_PID]))
    with owner(run_uri, run_id):
        given = ",".join(sorted(key for key, artifact in inputs.items() if artifact is not None))
        with Path(run_uri, "trace.txt").open("a") as trace:
            trace.write(f"{name} {index} {given}" + f" share {share}" * bool(share) + "\n")
        print(f"isr-dpo | {name} {index}: begun")
        print("chatter of a library")
        where = f"{name} {index}"
        if os.environ.get("FAKE_FAIL") == where:
            error = {"step": name, "index": index, "run_id": run_id, "error": "DataError", "retry": False}
            error |= {"message": "train.jsonl:3: not a row", "exit_code": DataError.exit_code}
            Path(layout.failure(run_uri)).write_text(json.dumps(error))
            raise DataError("train.jsonl:3: not a row")
        if os.environ.get("FAKE_DIE") == where:
            os.kill(os.getpid(), 9)
        if os.environ.get("FAKE_WAIT") == where:
            wait_and_write(Path(run_uri, "heartbeat.txt"))
        parsed = config.parse(recipe)
        if share:
            Path(output.path).parent.mkdir(parents=True, exist_ok=True)
            Path(output.path).write_text("{}")
            return
        for uri in outputs(name, parsed, run_uri, index):
            made = finish(uri, name)
        if name == "report":
            write(Path(layout.report(run_uri)), "a page")
        Path(output.path).parent.mkdir(parents=True, exist_ok=True)
        Path(output.path).write_text(made.to_json() if name not in ("register", "report") else "{}")
        metrics.log_metric("rows", 1.0)


def rebuild_report(run_uri, recipe):
    from isr_dpo import layout

    failed = json.loads(Path(layout.failure(run_uri)).read_text())
    write(Path(layout.report(run_uri)), f"a page, failed: {failed['message']}")
    return layout.report(run_uri)


def outputs(name, recipe, run_uri, index):
    """The directories that a step makes."""
    from isr_dpo import layout
    from isr_dpo.stores import join

    sets = recipe.sets_at(index)
    rounds = {"generate": ["responses"], "retrospect": ["contexts"], "judge": ["preferences"]}
    rounds["prefer"] = ["responses", "contexts", "preferences"]
    if name in rounds:
        return [layout.round_output(run_uri, index, made) for made in rounds[name]]
    return {
        "preflight": [layout.policy(run_uri, 0)],
        "prepare": [layout.frames(run_uri), layout.dataset(run_uri)],
        "train": [layout.round_output(run_uri, index, "training"), layout.policy(run_uri, index + 1)],
        "answer": [join(layout.answers(run_uri, index), s) for s in sets],
        "evaluate": [layout.graded(run_uri, index, recipe.protocol(s), s) for s in sets],
    }.get(name, [])


def finish(uri, step):
    from isr_dpo.manifest import Manifest, Origin
    from isr_dpo.outputs import begin

    output = begin(uri, Origin(step, step, {}, "", ""))
    if isinstance(output, Manifest):
        return output
    figures = {"rows": 8, "dropped_tie": 2, "order_consistency": 0.75, "reward_accuracy": 0.625, "words": 11.5}
    figures |= {"accuracy": 0.5, "accuracy_low": 0.25, "accuracy_high": 0.75}
    figures |= {"score": 2.5, "score_low": 2.25, "score_high": 2.75}
    output.write("metrics.json", json.dumps(figures).encode())
    if step == "evaluate":
        graded = {"protocol": "caption", "grader": "rule-based", "model": None, "prompt_digest": None}
        output.write("protocol.json", json.dumps(graded).encode())
    return output.seal(rows=1, deterministic=True)


def wait_and_write(path):
    while True:
        path.write_text(str(time.monotonic()))
        time.sleep(0.05)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
