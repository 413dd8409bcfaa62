"""A real PostgreSQL on loopback, from Debian's package: a cluster of its own in a temporary folder."""

from __future__ import annotations

import atexit
import functools
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

START_SECONDS = 60
INSTALL = "apt-get install --no-install-recommends postgresql"
_USER = "isr_dpo"


def missing() -> str:
    """What to install; empty where it is there."""
    return "" if _programs() is not None else f"PostgreSQL is not installed: {INSTALL}"


@functools.cache
def shared_database() -> str:
    """The address of an empty database that lives as long as the test session."""
    programs = _programs()
    assert programs is not None
    folder = Path(tempfile.mkdtemp(prefix="isr-dpo-postgres-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    account = _account()
    password = secrets.token_hex(16)
    (folder / "password").write_text(password)
    for path in (folder, folder / "password"):
        os.chown(path, account.pw_uid, account.pw_gid)
    as_user = _as(account)
    made = ["-D", str(folder / "data"), "-U", _USER, "--auth=scram-sha-256", f"--pwfile={folder / 'password'}"]
    subprocess.run(
        [programs / "initdb", *made, "-E", "UTF8", "--no-sync"], check=True, capture_output=True, cwd=folder, **as_user
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["-D", folder / "data", "-p", str(port), "-k", folder, "-c", "listen_addresses=127.0.0.1", "-F"]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [programs / "postgres", *options],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
            **as_user,
        )
    atexit.register(_stop, process)
    _await(programs, port, process, folder / "log.txt")
    return f"postgresql+psycopg2://{_USER}:{password}@127.0.0.1:{port}/postgres"


def _programs() -> Path | None:
    """The newest version's folder of programs; Debian keeps them off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    path = shutil.which("initdb")
    return found[-1].parent if found else Path(path).parent if path else None


def _account() -> pwd.struct_passwd:
    """Who runs it: PostgreSQL refuses root."""
    if os.getuid() != 0:
        return pwd.getpwuid(os.getuid())
    names = {account.pw_name: account for account in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]


def _as(account: pwd.struct_passwd) -> dict[str, object]:
    if os.getuid() != 0:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _await(programs: Path, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    ready = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-q"]
    while time.monotonic() < end and process.poll() is None:
        if subprocess.run(ready, check=False).returncode == 0:
            return
        time.sleep(0.1)
    raise RuntimeError(f"PostgreSQL did not start within {START_SECONDS} s:\n{log.read_text()[-3000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGINT: PostgreSQL's fast shutdown, which ends its own children."""
    for stop in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        process.send_signal(stop)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            continue
        return
