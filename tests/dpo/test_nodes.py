"""What nodes tell each other: orders go out when all are there, and whoever falls is named everywhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from isr_dpo.dpo import nodes
from isr_dpo.dpo.nodes import Follower, Leader, Node
from isr_dpo.errors import ModelError, OutsideError, WorkerDied
from tests.servers.ports import two_free_ports

Work = Callable[[], None]
TOKEN = "run-1"


@pytest.fixture
def node() -> Node:
    return Node(0, 3, "127.0.0.1", two_free_ports())


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "LAST_WORDS_SECONDS", 60.0)


def follower(node: Node, rank: int, *, over: Callable[[], bool] = lambda: False, token: str = TOKEN) -> Follower:
    return Follower(node._replace(rank=rank), token=token, over=over, join_seconds=60)


def followed(
    pool: ThreadPoolExecutor, node: Node, work: Callable[[int, Mapping[str, Any]], None]
) -> list[Future[None]]:
    """Both followers, in threads."""

    def prepare(rank: int) -> Callable[[Mapping[str, Any]], Work]:
        return lambda order: lambda: work(rank, order)

    return [pool.submit(follower(node, rank).follow, prepare(rank)) for rank in (1, 2)]


@pytest.fixture
def pool() -> Any:
    with ThreadPoolExecutor() as threads:
        yield threads


def test_all_nodes_do_each_order_beside_each_other(node: Node, pool: ThreadPoolExecutor) -> None:
    meeting = threading.Barrier(3)
    done: list[tuple[int, Any]] = []

    def work(rank: int, order: Mapping[str, Any]) -> None:
        meeting.wait(timeout=60)
        done.append((rank, order["number"]))

    with Leader(node, token=TOKEN) as leader:
        others = followed(pool, node, work)
        for number in (1, 2):
            leader.together({"number": number}, lambda number=number: work(0, {"number": number}))
            assert sorted(done[-3:]) == [(0, number), (1, number), (2, number)]
            leader.check()
    assert [other.result(timeout=60) for other in others] == [None, None]


def test_a_follower_may_be_done_before_the_leader_notices_its_own_end(node: Node, pool: ThreadPoolExecutor) -> None:
    def linger() -> None:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            leader.check()
            time.sleep(0.01)

    with Leader(node, token=TOKEN) as leader:
        others = followed(pool, node, lambda *_: None)
        leader.together({}, linger)
        leader.together({}, lambda: None)
    assert [other.result(timeout=60) for other in others] == [None, None]


def test_a_followers_named_error_is_the_leaders(node: Node, pool: ThreadPoolExecutor) -> None:
    """Also where the leader's own ranks fell over it first, and noticed no more than that."""

    def fall(rank: int, _: object) -> None:
        time.sleep(0.2)
        if rank == 2:
            raise ModelError("train: rank 5 has no more device memory")

    def notice() -> None:
        raise OutsideError("train: rank 0 of 6 ended with exit code 1")

    with Leader(node, token=TOKEN) as leader:
        others = followed(pool, node, fall)
        with pytest.raises(ModelError, match="rank 5 has no more"):
            leader.together({}, notice)
    with pytest.raises(ModelError):
        others[1].result(timeout=60)


def test_where_nobody_knows_more_all_say_what_they_saw(node: Node, pool: ThreadPoolExecutor) -> None:
    def fall(rank: int, _: object) -> None:
        if rank == 1:
            raise OutsideError("train: rank 3 of 6 was killed by SIGKILL")

    def notice() -> None:
        raise OutsideError("train: rank 0 of 6 ended with exit code 1")

    with Leader(node, token=TOKEN) as leader:
        followed(pool, node, fall)
        with pytest.raises(OutsideError, match=r"(?s)rank 0 of 6 .*rank 3 of 6 was killed"):
            leader.together({}, notice)


def test_an_error_while_preparing_keeps_the_others_from_starting(node: Node, pool: ThreadPoolExecutor) -> None:
    worked: list[int] = []

    def refuse(_: object) -> Work:
        raise ModelError("the policy cannot be read")

    with Leader(node, token=TOKEN) as leader:
        pool.submit(follower(node, 1).follow, refuse)
        pool.submit(follower(node, 2).follow, lambda _: lambda: worked.append(2))
        with pytest.raises(ModelError, match="cannot be read"):
            leader.together({}, lambda: worked.append(0))
    assert worked == []


def test_a_follower_notices_that_the_leader_is_gone(node: Node, pool: ThreadPoolExecutor) -> None:
    def work(rank: int, _: object) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            followers[rank].check()
            time.sleep(0.01)

    followers = {rank: follower(node, rank) for rank in (1, 2)}
    others = [
        pool.submit(followers[rank].follow, lambda order, rank=rank: lambda: work(rank, order)) for rank in (1, 2)
    ]

    def vanish() -> None:
        time.sleep(0.2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Leader(node, token=TOKEN) as leader:
        leader.together({}, vanish)
    for other in others:
        with pytest.raises(WorkerDied, match="node 0 is gone"):
            other.result(timeout=60)


def test_a_lost_follower_ends_the_leaders_work(node: Node, pool: ThreadPoolExecutor) -> None:
    two = node._replace(nodes=2)

    def hold() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            leader.check()
            time.sleep(0.01)

    def vanish(_: object) -> Work:
        def work() -> None:
            raise SystemExit  # no word: as a process that is killed

        return work

    with Leader(two, token=TOKEN) as leader:
        pool.submit(follower(two, 1).follow, vanish)
        with pytest.raises(WorkerDied, match="node 1 of 2 is gone"):
            leader.together({}, hold)


def test_a_follower_that_comes_when_all_is_done_has_nothing_to_do(node: Node) -> None:
    follower(node, 1, over=lambda: True).follow(lambda _: pytest.fail("there is no leader"))


def test_nodes_that_do_not_come_are_named(node: Node, pool: ThreadPoolExecutor) -> None:
    with Leader(node, token=TOKEN, join_seconds=1) as leader:
        others = [follower(node, 1), follower(node, 2, token="another run")]
        for other in others:
            pool.submit(other.follow, lambda _: lambda: None)
        while any(other._line is None for other in others):  # until both stand at the door
            time.sleep(0.01)
        with pytest.raises(OutsideError, match=r"of 3 nodes, \[2\] did not come within 1 s"):
            leader.together({}, lambda: None)


def test_a_node_finds_its_place_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"NODE_RANK": "1", "NNODES": "2", "MASTER_ADDR": "job-node-0-0.job", "MASTER_PORT": "29500"}
    for name, value in given.items():
        monkeypatch.setenv(f"PET_{name}", value)
    assert nodes.here() == Node(1, 2, "job-node-0-0.job", 29500)
    monkeypatch.delenv("PET_NNODES")
    with pytest.raises(OutsideError, match="PET_NNODES"):
        nodes.here()
