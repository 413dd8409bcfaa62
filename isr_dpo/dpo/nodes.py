"""Several machines that train one round: who is who, and what they tell each other outside the ranks.

torchrun brings the ranks of all nodes together and knows nothing of why one fell. So the processes that start it hold a
line to each other: node 0, the leader, says what to train from; the others, its followers, say that they are ready, are
done, or what went wrong; and each learns within seconds that another is gone. Messages are JSON, a line each.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from isr_dpo import errors
from isr_dpo.errors import IsrDpoError, OutsideError, WorkerDied

JOIN_SECONDS = 1800.0
"""Nodes may be found, and fetch a policy, at very different speeds."""
LAST_WORDS_SECONDS = 10.0
"""Ranks of several nodes fall over one another: so long the leader waits to hear which fell first."""
_RETRY_SECONDS = 0.5


class Node(NamedTuple):
    """This machine among those of a training job."""

    rank: int
    nodes: int
    address: str
    """Of node 0, as all nodes resolve it."""
    port: int
    """Where torchrun of node 0 listens; the leader listens on the next one."""


def here() -> Node:
    """By the environment variables that Kubeflow Trainer's torch runtime sets (PET_NNODES, PET_NODE_RANK,
    PET_MASTER_ADDR, PET_MASTER_PORT). Raises OutsideError where one is missing."""
    try:
        return Node(
            rank=int(os.environ["PET_NODE_RANK"]),
            nodes=int(os.environ["PET_NNODES"]),
            address=os.environ["PET_MASTER_ADDR"],
            port=int(os.environ["PET_MASTER_PORT"]),
        )
    except (KeyError, ValueError) as error:
        raise OutsideError(
            f"train: {error}: a node of a TrainJob finds its place in PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR and "
            "PET_MASTER_PORT, which Kubeflow Trainer's runtime torch-distributed sets"
        ) from error


class Lost(Exception):
    """The other end of a line is gone."""


class _Line:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, seconds in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):  # a machine that lost its power says no goodbye
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
        self._connection, self._read = connection, b""

    def say(self, tree: Mapping[str, Any]) -> None:
        try:
            self._connection.sendall(json.dumps(tree).encode() + b"\n")
        except OSError as error:
            raise Lost from error

    def heard(self, *, within: float) -> dict[str, Any] | None:
        """The next message; None where there is none in time."""
        until = time.monotonic() + within
        while b"\n" not in self._read:
            left = max(0.0, until - time.monotonic())
            if not select.select([self._connection], [], [], left)[0]:
                return None
            try:
                received = self._connection.recv(65536)
            except OSError as error:
                raise Lost from error
            if not received:
                raise Lost
            self._read += received
        line, _, self._read = self._read.partition(b"\n")
        tree: dict[str, Any] = json.loads(line)
        return tree

    def close(self) -> None:
        self._connection.close()


class Leader:
    """Node 0. As a context it listens, and lets its followers go at the end."""

    def __init__(self, node: Node, *, token: str, join_seconds: float = JOIN_SECONDS) -> None:
        self.node = node
        self._token, self._join_seconds = token, join_seconds
        self._lines: dict[int, _Line] = {}
        self._early: dict[int, dict[str, Any]] = {}
        """What a follower said before it was asked: its ranks may be seen to end before this node's."""

    def __enter__(self) -> Leader:
        self._listener = socket.create_server(("", self.node.port + 1))
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for line in self._lines.values():
            with contextlib.suppress(Lost):
                if kind is None:
                    line.say({"end": True})
            line.close()
        self._listener.close()

    def together(self, order: Mapping[str, Any], work: Callable[[], None]) -> None:
        """Gives `order` to all followers, does `work` beside theirs when they are ready, and waits for them.

        Raises:
            IsrDpoError: of this node, or a follower's, whichever says more about the cause.
        """
        self._gather()
        self._say({"order": dict(order)})
        self._await("ready", self._join_seconds)
        self._say({"go": True})
        try:
            work()
        except OutsideError as error:
            raise self._cause(error) from error
        self._await("done", self._join_seconds)

    def check(self) -> None:
        """Raises a follower's error, or WorkerDied where one is gone."""
        for node in self._lines.keys() - self._early.keys():
            if (found := self._heard(node, within=0)) is not None:
                self._early[node] = found

    def _gather(self) -> None:
        until = time.monotonic() + self._join_seconds
        while len(self._lines) < self.node.nodes - 1:
            self._listener.settimeout(max(0.01, until - time.monotonic()))
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                missing = sorted({*range(1, self.node.nodes)} - self._lines.keys())
                raise OutsideError(
                    f"train: of {self.node.nodes} nodes, {missing} did not come within {self._join_seconds:.0f} s; see "
                    "what keeps their pods: kubectl describe pod"
                ) from None
            connection.settimeout(None)
            self._greet(_Line(connection))

    def _greet(self, line: _Line) -> None:
        """Takes a follower in; others that connect here are sent away."""
        try:
            said = line.heard(within=5) or {}
        except (Lost, ValueError):
            said = {}
        if said.get("token") == self._token and said.get("node") in range(1, self.node.nodes):
            self._lines[said["node"]] = line
        else:
            line.close()

    def _say(self, tree: Mapping[str, Any]) -> None:
        for node, line in self._lines.items():
            try:
                line.say(tree)
            except Lost:
                raise self._gone(node) from None

    def _await(self, word: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        for node in self._lines:
            said = self._early.pop(node, None) or self._heard(node, within=max(0.0, until - time.monotonic()))
            if said != {word: True}:
                raise OutsideError(f"train: node {node} of {self.node.nodes} was not {word} within {seconds:.0f} s")

    def _heard(self, node: int, *, within: float) -> dict[str, Any] | None:
        try:
            found = self._lines[node].heard(within=within)
        except Lost:
            raise self._gone(node) from None
        if found is not None and "failed" in found:
            raise _error(found["failed"])
        return found

    def _gone(self, node: int) -> WorkerDied:
        return WorkerDied(f"train: node {node} of {self.node.nodes} is gone: its pod was ended, or its machine lost")

    def _cause(self, own: OutsideError) -> IsrDpoError:
        """What to tell the user when ranks of this node fell: perhaps they fell over a follower's."""
        until = time.monotonic() + LAST_WORDS_SECONDS
        words = [str(own)]
        for node in self._lines:
            try:
                self._heard(node, within=max(0.0, until - time.monotonic()))
            except OutsideError as error:
                words.append(str(error))
            except IsrDpoError as error:  # it knows what was wrong; ours only noticed
                return error
        return own if len(words) == 1 else type(own)("\n".join(dict.fromkeys(words)))


class Follower:
    """Any other node."""

    def __init__(self, node: Node, *, token: str, over: Callable[[], bool], join_seconds: float = JOIN_SECONDS) -> None:
        """`over` says that the job's result stands, so that a leader that is gone is not missed."""
        self.node = node
        self._token, self._over, self._join_seconds = token, over, join_seconds
        self._line: _Line | None = None

    def follow(self, prepare: Callable[[Mapping[str, Any]], Callable[[], None]]) -> None:
        """Serves the leader until it lets this node go. `prepare(order)` fetches what an order needs and returns the
        work itself, which begins when all nodes are ready.

        Raises:
            IsrDpoError: of `prepare` or the work, of which the leader is told first.
            WorkerDied: the leader is gone.
        """
        self._line = self._join()
        if self._line is None:
            return
        try:
            while (said := self._next()) is not None and "order" in said:
                work = prepare(said["order"])
                self._line.say({"ready": True})
                if self._next() is None:
                    return
                work()
                self._line.say({"done": True})
        except Lost:
            if not self._over():
                raise self._gone() from None
        except IsrDpoError as error:
            with contextlib.suppress(Lost):
                self._line.say({"failed": _tree(error)})
            raise
        finally:
            self._line.close()

    def check(self) -> None:
        """Raises WorkerDied where the leader is gone."""
        assert self._line is not None
        try:
            found = self._line.heard(within=0)
        except Lost:
            raise self._gone() from None
        assert found is None, f"node 0 says {found} in the middle of the work"

    def _next(self) -> dict[str, Any] | None:
        """None: the leader lets this node go."""
        assert self._line is not None
        while (said := self._line.heard(within=60)) is None:
            pass
        return None if "end" in said else said

    def _join(self) -> _Line | None:
        until = time.monotonic() + self._join_seconds
        while not self._over():
            with contextlib.suppress(OSError):
                connection = socket.create_connection((self.node.address, self.node.port + 1), timeout=5)
                connection.settimeout(None)
                line = _Line(connection)
                with contextlib.suppress(Lost):
                    line.say({"node": self.node.rank, "token": self._token})
                    return line
            if time.monotonic() > until:
                raise OutsideError(
                    f"train: node 0 ({self.node.address}, port {self.node.port + 1}) did not answer within "
                    f"{self._join_seconds:.0f} s; see what keeps its pod, and whether a NetworkPolicy lets nodes meet"
                )
            time.sleep(_RETRY_SECONDS)
        return None

    def _gone(self) -> WorkerDied:
        return WorkerDied("train: node 0 is gone: its pod was ended, or its machine lost")


def _tree(error: IsrDpoError) -> dict[str, str]:
    return {"type": type(error).__name__, "message": str(error)}


def _error(tree: Mapping[str, str]) -> IsrDpoError:
    kind: type[IsrDpoError] = getattr(errors, tree["type"], OutsideError)
    return kind(tree["message"])
