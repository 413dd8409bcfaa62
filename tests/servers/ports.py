"""Ports of loopback that nobody holds."""

from __future__ import annotations

import contextlib
import random
import socket


def two_free_ports() -> int:
    """The first of two that follow each other, from a range that connections do not take theirs from."""
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000, 2)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            socket.create_server(("", port + 1)).close()
            return port
