"""A real PostgreSQL on loopback, with a password, from Debian's package `postgresql`."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.servers.ports import two_free_ports


class Database(NamedTuple):
    """An empty database of user `mlflow`."""

    host: str
    port: int
    password: str


def missing() -> str:
    """What to install before this can run; empty where all is there."""
    lacking = [] if _binaries() else ["the Debian package postgresql"]
    try:
        import psycopg2  # noqa: F401
    except ModuleNotFoundError:
        lacking.append("psycopg2-binary")
    return f"PostgreSQL is left out: install {' and '.join(lacking)}" if lacking else ""


@contextlib.contextmanager
def serve() -> Iterator[Database]:
    """The server, as the package's user where this process is root: PostgreSQL refuses to be root."""
    binaries = _binaries()
    assert binaries is not None, missing()
    folder = Path(tempfile.mkdtemp(prefix="isr-dpo-postgres-"))
    database = Database("127.0.0.1", two_free_ports(), secrets.token_hex(8))
    (folder / "password").write_text(database.password)
    user = {}
    if os.geteuid() == 0:
        entry = pwd.getpwnam("postgres")
        user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        for path in (folder, folder / "password"):
            os.chown(path, entry.pw_uid, entry.pw_gid)
    data = folder / "data"

    def run(program: str, *arguments: str) -> None:
        done = subprocess.run(
            [binaries / program, *arguments], capture_output=True, text=True, check=False, cwd=folder, **user
        )
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"

    try:
        run(
            "initdb", f"--pgdata={data}", "--username=mlflow", f"--pwfile={folder / 'password'}",
            "--auth=scram-sha-256", "--no-sync",
        )  # fmt: skip
        options = f"-p {database.port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        run("pg_ctl", f"--pgdata={data}", f"--options={options}", f"--log={folder / 'log'}", "--wait", "start")
        try:
            _create(database)
            yield database
        finally:
            run("pg_ctl", f"--pgdata={data}", "--mode=immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _create(database: Database) -> None:
    import psycopg2

    connection = psycopg2.connect(
        host=database.host, port=database.port, user="mlflow", password=database.password, dbname="postgres"
    )
    connection.autocommit = True
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE mlflow")


def _binaries() -> Path | None:
    """Debian keeps them off the PATH, a folder a version."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None
