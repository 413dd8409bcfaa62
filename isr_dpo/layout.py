"""Where a run's outputs lie under its URI, and who is who: round t reads policy-t and writes policy-(t+1)."""

from __future__ import annotations

import re

from isr_dpo.stores import join


def run_file(run_uri: str) -> str:
    return join(run_uri, "run.json")


def dataset(run_uri: str) -> str:
    return join(run_uri, "dataset")


def frames(run_uri: str) -> str:
    return join(run_uri, "frames")


def round_output(run_uri: str, index: int, name: str) -> str:
    """`name` is responses, contexts, preferences or training; round 0 is the seed DPO."""
    return join(run_uri, f"round-{index:02d}", name)


def policy_name(index: int) -> str:
    return f"policy-{index:02d}"


def policy(run_uri: str, index: int) -> str:
    return join(run_uri, policy_name(index))


def masters(run_uri: str, index: int) -> str:
    """fp32 weights of the newest policy, where policies are stored in less."""
    return join(run_uri, "masters", policy_name(index))


def answers(run_uri: str, index: int) -> str:
    """Holds a directory an evaluation set."""
    return join(run_uri, "answers", policy_name(index))


def evaluation(run_uri: str, index: int) -> str:
    """Holds a directory a set that is graded, `graded_name`."""
    return join(run_uri, "evaluation", policy_name(index))


def graded_name(protocol: str, set_name: str) -> str:
    """The directory's name, below `evaluation`, that holds the grades of a set."""
    return f"{protocol}-{set_name}"


def graded(run_uri: str, index: int, protocol: str, set_name: str) -> str:
    """The grades of a policy's answers to a set."""
    return join(evaluation(run_uri, index), graded_name(protocol, set_name))


def analysis(run_uri: str, name: str) -> str:
    """What an analysis found that cost a grader or a person."""
    return join(run_uri, "analysis", f"{name}.json")


def account(run_uri: str) -> str:
    """Holds what the run has spent on its grader."""
    return join(run_uri, "account")


def batches(run_uri: str) -> str:
    """Holds the grader's batches that are under way, and those that were."""
    return join(run_uri, "batches")


def ledger(run_uri: str) -> str:
    """Beside the run: the runs of a folder share one."""
    folder, slash, _ = run_uri.rstrip("/").rpartition("/")
    if folder.endswith(":/"):  # a bucket of its own
        return join(run_uri, "ledger")
    return join(folder, "ledger") if slash else "ledger"


def report(run_uri: str) -> str:
    return join(run_uri, "report", "index.html")


def failure(run_uri: str) -> str:
    """What stopped the latest attempt; absent while none did."""
    return join(run_uri, "failed.json")


def tracked_marks(run_uri: str) -> str:
    """Holds a mark for each step that MLflow has."""
    return join(run_uri, "tracked")


def tracked(run_uri: str, step: str, index: int) -> str:
    """Remembers, by digest, that MLflow has a step's metrics."""
    return join(tracked_marks(run_uri), f"{step}-{index:02d}")


def times(run_uri: str) -> str:
    """Holds a record of the time that each step took."""
    return join(run_uri, "times")


def time(run_uri: str, step: str, index: int, *, share: int = 0) -> str:
    """A step's record, or that of one pod's share of it."""
    of_share = f"-share-{share}" if share else ""
    return join(times(run_uri), f"{step}-{index:02d}{of_share}.json")


def choices(run_uri: str, index: int, annotator: str) -> str:
    """What a person, or an oracle, chose between the answers of a round."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", annotator)  # an oracle is called by its model's name
    return join(run_uri, "analysis", f"{choices_prefix(index)}{name}.jsonl")


def choices_prefix(index: int) -> str:
    """How the names of a round's choice files begin."""
    return f"choices-round-{index:02d}-"
