"""A TrainJob is created once, followed to its end through everything that breaks, and never left behind by mistake."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from isr_dpo.cluster import kube, node_log, watch
from isr_dpo.cluster.train_job import Pods, train_job
from isr_dpo.errors import ClusterRefused, DataError, KeyRefused, OutsideError
from tests.cluster.following import PODS
from tests.servers.kube_server import KubeServer

NAME = "isr-dpo-train-01-0123456789"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as threads:
        yield threads


@pytest.fixture
def server(pool: ThreadPoolExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeServer]:
    """Gone before the threads of `pool`, which then give up."""
    monkeypatch.setattr(node_log, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(watch, "AWAY_SECONDS", 10.0)
    with KubeServer() as running:
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig(tmp_path / "kubeconfig")))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        yield running


def job(pods: Pods = PODS) -> dict[str, Any]:
    return train_job(NAME, pods, ["{}"], ranks=8, run_id="run-1")


class Following:
    """A step that follows, in a thread."""

    def __init__(self, pool: ThreadPoolExecutor, pods: Pods = PODS) -> None:
        self.lines: list[str] = []
        self._ended: Future[None] = pool.submit(
            lambda: watch.run(kube.open_cluster(), job(pods), on_line=self.lines.append)
        )

    def end(self) -> None:
        self._ended.result(timeout=120)

    def wait_for_line(self, line: str) -> None:
        until = time.monotonic() + 120
        while line not in self.lines:
            assert time.monotonic() < until, self.lines
            time.sleep(0.01)


def verbs(server: KubeServer, resource: str = "trainjobs") -> list[str]:
    return [asked.verb for asked in server.asked if asked.resource == resource]


def test_a_job_is_created_followed_and_removed(
    server: KubeServer, pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="isr_dpo")
    step = Following(pool, Pods.from_json(PODS.to_json().replace('"queue":null', '"queue":"isr-dpo"')))
    server.wait_for("watch")
    server.run()
    server.say("round 1 · train: step 1/10, loss 0.693")
    server.say("not of interest", node=1)
    step.wait_for_line("round 1 · train: step 1/10, loss 0.693")
    server.say("the last word")
    server.complete()
    step.end()
    assert step.lines == ["round 1 · train: step 1/10, loss 0.693", "the last word"]
    assert server.jobs == {}
    told = [record.message for record in caplog.records]
    assert told[:3] == [
        f"TrainJob {NAME}: created in namespace isr-dpo",
        f"TrainJob {NAME}: waits in its queue",
        f"TrainJob {NAME}: runs",
    ]


def test_a_failure_says_why_and_what_was_printed_last(server: KubeServer, pool: ThreadPoolExecutor) -> None:
    step = Following(pool)
    server.run()
    for number in range(40):
        server.say(f"line {number}")
    step.wait_for_line("line 39")
    server.end_pod(1, 137, "OOMKilled")
    server.fail()
    with pytest.raises(OutsideError) as caught:
        step.end()
    said = str(caught.value)
    assert "failed: FailedJobs: jobset failed due to one or more job failures" in said
    assert "node 1: exit code 137 (OOMKilled)" in said
    assert "line 14\n" not in said
    assert said.endswith("line 38\nline 39")
    assert server.jobs == {}  # what failed may be started again by its controller


def test_a_job_past_its_deadline_is_a_failure(server: KubeServer, pool: ThreadPoolExecutor) -> None:
    step = Following(pool)
    server.run()
    server.fail("DeadlineExceeded", "TrainJob exceeded its deadline")
    with pytest.raises(OutsideError, match="DeadlineExceeded"):
        step.end()


def test_a_job_that_its_step_knows_to_be_hopeless_is_ended(server: KubeServer) -> None:
    def check() -> None:
        raise DataError("pair q-1: the chosen response is empty")

    with pytest.raises(DataError, match="pair q-1"):
        watch.run(kube.open_cluster(), job(), on_line=print, check=check)
    assert server.jobs == {}


def test_a_job_that_others_delete_is_missed(server: KubeServer, pool: ThreadPoolExecutor) -> None:
    step = Following(pool)
    server.run()
    server.delete(NAME)
    with pytest.raises(OutsideError, match="was deleted while it trained, and not by this step"):
        step.end()


def test_a_watch_that_breaks_or_falls_behind_goes_on(server: KubeServer, pool: ThreadPoolExecutor) -> None:
    step = Following(pool)
    server.run()
    server.say("before")
    step.wait_for_line("before")
    for number, breaks in enumerate((server.cut, server.compact, server.cut), start=1):
        watched = verbs(server).count("watch")
        breaks()
        server.wait_for("watch", times=watched + 1)
        server.say(f"after {number}")
        step.wait_for_line(f"after {number}")
    server.complete()
    step.end()
    assert step.lines == ["before", "after 1", "after 2", "after 3"]  # none twice, though the log was opened anew


def test_what_happens_while_the_api_server_is_away_is_not_missed(server: KubeServer, pool: ThreadPoolExecutor) -> None:
    step = Following(pool)
    server.wait_for("watch")
    server.run()
    server.away(2)
    server.complete()
    step.end()
    assert server.jobs == {}


def test_an_api_server_that_stays_away_is_an_outside_error(server: KubeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube, "PATIENCE_SECONDS", 1.0)
    server.away(60)
    with pytest.raises(OutsideError, match=r"could not create trainjobs.* 503, the server is currently unable"):
        watch.run(kube.open_cluster(), job(), on_line=print)


def test_a_standing_job_of_another_kind_is_not_touched(server: KubeServer, pool: ThreadPoolExecutor) -> None:
    step = Following(pool)
    server.run()
    other = Pods.from_json(PODS.to_json().replace('"nodes":2', '"nodes":4'))
    with pytest.raises(ClusterRefused, match=rf"asks for something else .*kubectl delete trainjob {NAME} -n isr-dpo"):
        watch.run(kube.open_cluster(), job(other), on_line=print)
    assert list(server.jobs) == [NAME]
    server.complete()
    step.end()


@pytest.mark.parametrize("removal_seconds", [0.0, 1.0])
def test_one_that_ended_while_nobody_looked_makes_room(
    server: KubeServer, pool: ThreadPoolExecutor, removal_seconds: float
) -> None:
    cluster = kube.open_cluster()
    watch._TrainJob(cluster, job(), print, lambda: None)._create()
    first = server.job()["metadata"]["uid"]
    server.fail()
    server.removal_seconds = removal_seconds
    step = Following(pool)
    server.wait_for("create", times=3 if removal_seconds else 2)
    while server.jobs.get(NAME, {"metadata": {"uid": first}})["metadata"]["uid"] == first:
        time.sleep(0.01)
    server.run()
    server.complete()
    step.end()


def test_a_pod_that_cannot_start_says_why(
    server: KubeServer, pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="isr_dpo")
    step = Following(pool)
    server.job()
    server.start_pod(NAME, 1, {"waiting": {"reason": "ImagePullBackOff", "message": "manifest unknown"}})
    while not any("node 1 waits: ImagePullBackOff: manifest unknown" in r.message for r in caplog.records):
        time.sleep(0.01)
    server.complete()
    step.end()


def test_lines_of_a_pod_that_takes_anothers_place_follow(server: KubeServer, pool: ThreadPoolExecutor) -> None:
    step = Following(pool)
    server.run()
    server.say("first attempt")
    step.wait_for_line("first attempt")
    server.end_pod(0, 8)
    server.start_pod(NAME, 0)
    server.say("second attempt")
    step.wait_for_line("second attempt")
    server.complete()
    step.end()
    assert step.lines == ["first attempt", "second attempt"]


def test_lines_of_a_container_that_is_started_again_follow(server: KubeServer, pool: ThreadPoolExecutor) -> None:
    step = Following(pool)
    server.run()
    server.say("first attempt")
    step.wait_for_line("first attempt")
    logs = verbs(server, "pods/log").count("log")
    server.end_pod(0, 8)
    server.wait_for("log", times=logs + 1)  # it is read to its end
    server.restart_pod(0, 8)
    server.say("second attempt")
    step.wait_for_line("second attempt")
    server.fail()
    with pytest.raises(OutsideError, match=r"node 0: exit code 8 \(Error\)"):
        step.end()
    assert step.lines == ["first attempt", "second attempt"]


@pytest.mark.parametrize(("verb", "resource"), [("create", "trainjobs"), ("list", "trainjobs"), ("watch", "trainjobs")])
def test_a_missing_right_is_named(server: KubeServer, verb: str, resource: str) -> None:
    server.deny(verb, resource)
    with pytest.raises(ClusterRefused) as caught:
        watch.run(kube.open_cluster(), job(), on_line=print)
    assert f"does not let this account {verb} {resource}.trainer.kubeflow.org in namespace isr-dpo" in str(caught.value)
    assert 'User "system:serviceaccount:isr-dpo:isr-dpo-run" cannot' in str(caught.value)
    assert f"kubectl auth can-i {verb} trainjobs.trainer.kubeflow.org -n isr-dpo" in str(caught.value)
    assert not caught.value.retry


def test_a_log_that_may_not_be_read_costs_the_log_alone(server: KubeServer, pool: ThreadPoolExecutor) -> None:
    server.deny("log", "pods/log")
    step = Following(pool)
    server.run()
    server.complete()
    step.end()
    assert step.lines == []


def test_a_token_that_has_run_out_is_said_and_a_new_one_is_taken_up(
    server: KubeServer, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    step = Following(pool)
    server.wait_for("watch")
    server.tokens = {"a-new-token"}
    server.kubeconfig(tmp_path / "kubeconfig", "a-new-token")
    server.cut()
    server.run()
    server.complete()
    step.end()
    server.tokens = set()
    with pytest.raises(KeyRefused, match=r"refuses the token \(expired.*on create trainjobs.*log in again"):
        watch.run(kube.open_cluster(), job(), on_line=print)


def test_a_cluster_without_trainer_says_what_to_install(server: KubeServer) -> None:
    server.knows_trainer = False
    with pytest.raises(ClusterRefused, match=r"needs Kubeflow Trainer 2\.2 or newer"):
        watch.run(kube.open_cluster(), job(), on_line=print)


def test_no_cluster_at_all_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ClusterRefused, match="set KUBECONFIG"):
        kube.open_cluster("isr-dpo")


def started(server: KubeServer) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.cluster.following"]
    return subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_whoever_is_told_to_stop_takes_the_job_along(server: KubeServer, how: signal.Signals) -> None:
    step = started(server)
    server.wait_for("watch")
    before = time.monotonic()
    step.send_signal(how)
    step.communicate(timeout=60)
    assert time.monotonic() - before < 15  # of a spot machine's pod between SIGTERM and SIGKILL
    assert step.returncode in (128 + signal.SIGTERM, 1, -signal.SIGINT, 130)
    assert server.jobs == {}


def test_killed_it_leaves_the_job_to_the_next_attempt(server: KubeServer) -> None:
    first = started(server)
    server.wait_for("watch")
    server.run()
    uid = server.job()["metadata"]["uid"]
    first.kill()
    first.communicate()
    server.say("while nobody listened")
    second = started(server)
    server.wait_for("create", times=2)  # the first one's requests are all through
    server.wait_for("log", times=verbs(server, "pods/log").count("log") + 1)
    assert server.job()["metadata"]["uid"] == uid
    server.complete()
    printed, _ = second.communicate(timeout=120)
    assert second.returncode == 0
    assert "node 0 | while nobody listened" in printed
    assert verbs(server).count("create") == 2  # the second was told that it exists


def test_signals_are_left_alone_outside_the_main_thread(server: KubeServer, pool: ThreadPoolExecutor) -> None:
    assert threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    step = Following(pool)
    server.run()
    assert signal.getsignal(signal.SIGTERM) is before
    server.complete()
    step.end()
