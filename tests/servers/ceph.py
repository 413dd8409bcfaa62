"""A real S3 server: Ceph's RADOS gateway over a one-node cluster on loopback, its objects in memory.

From a shell, `python -m tests.servers.ceph COMMAND...` starts one, runs COMMAND with the AWS_* variables that reach it
and `RUN_BUCKET`, stops everything and exits with COMMAND's code. Needs no root, only Debian's packages (`PACKAGES`).
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

from tests.servers import s3_environment
from tests.servers.ports import two_free_ports

PACKAGES = {"ceph-mon": "ceph-mon", "ceph-osd": "ceph-osd", "radosgw": "radosgw"}
"""Program -> the Debian package that brings it (and with them ceph, monmaptool, radosgw-admin)."""

START_SECONDS = 300

CONFIGURATION = """
[global]
fsid = {fsid}
mon host = [v1:127.0.0.1:{mon_port}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
ms bind msgr2 = false
keyring = /dev/null
admin socket =
run dir = {folder}
crash dir = {folder}
log file = {folder}/$name.log
mon data = {folder}/mon
mon data avail warn = 0
mon data avail crit = 0
mon allow pool size one = true
mon max pg per osd = 1000
paxos propose interval = 0.1
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
osd crush chooseleaf type = 0
osd crush update on start = false
osd class update on start = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{rgw_port} tcp_nodelay=1
rgw thread pool size = 32
"""


def missing() -> str:
    """Empty where Ceph is installed, else what to do."""
    absent = sorted({package for program, package in PACKAGES.items() if shutil.which(program) is None})
    return f"Ceph is not installed: apt-get install --no-install-recommends {' '.join(absent)}" if absent else ""


@contextlib.contextmanager
def serve() -> Iterator[dict[str, str]]:
    """Yields the environment that reaches it, bucket included (`RUN_BUCKET`)."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ceph-", ignore_cleanup_errors=True)))
        node = _Node(folder)
        stack.callback(node.stop)
        yield node.start()


class _Node:
    """One monitor, one OSD, one gateway: processes of ours, stopped by their handles."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._mon_port = two_free_ports()
        self._rgw_port = self._mon_port + 1
        self._fsid = str(uuid.uuid4())
        self._conf = folder / "ceph.conf"

    def start(self) -> dict[str, str]:
        for name in ("mon", "osd", "rgw"):
            (self._folder / name).mkdir()
        self._conf.write_text(
            CONFIGURATION.format(fsid=self._fsid, folder=self._folder, mon_port=self._mon_port, rgw_port=self._rgw_port)
        )
        monmap, osd = str(self._folder / "monmap"), str(uuid.uuid4())
        address = f"[v1:127.0.0.1:{self._mon_port}]"
        self._run("monmaptool", "--create", "--addv", "a", address, "--fsid", self._fsid, monmap)
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap)
        self._spawn("ceph-mon", "-i", "a")
        self._run("ceph", "osd", "new", osd)
        # Said here: an OSD that says so itself as it starts may be refused, before it has learnt the cluster's fsid.
        self._run("ceph", "osd", "crush", "add", "osd.0", "1", "root=default", "host=node")
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._spawn("ceph-osd", "-i", "0")
        self._spawn("radosgw", "-n", "client.rgw")
        url = f"http://127.0.0.1:{self._rgw_port}"
        self._wait_for(url)
        access, secret = s3_environment.keys()
        self._run(
            *("radosgw-admin", "user", "create", "--uid", "test", "--display-name", "test"),
            *("--access-key", access, "--secret-key", secret),
        )
        return s3_environment.make(url, access, secret)

    def stop(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.kill()  # nothing of it is kept
            daemon.wait()

    def _run(self, program: str, *arguments: str) -> None:
        command = [program, "-c", str(self._conf), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS)
        if done.returncode:
            raise RuntimeError(f"{program} {' '.join(arguments[:2])} failed: {done.stderr}{self._logs()}")

    def _spawn(self, program: str, *arguments: str) -> None:
        log = (self._folder / f"{program}.out").open("wb")
        with log:  # setpriv: the daemons end with this process, even where it is killed
            command = ["setpriv", "--pdeathsig", "KILL", program, "-c", str(self._conf), "-f", *arguments]
            self._daemons.append(subprocess.Popen(command, stdout=log, stderr=log))

    def _wait_for(self, url: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            ended = [d.args for d in self._daemons if d.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"Ceph did not start ({ended or 'too slow'}): {self._logs()}")
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
                return
            time.sleep(0.2)

    def _logs(self) -> str:
        return "".join(f"\n{p.name}: {p.read_text()[-1500:]}" for p in sorted(self._folder.glob("*.out")))


def main(command: list[str]) -> int:
    if not command:
        sys.exit("usage: python -m tests.servers.ceph COMMAND...")
    if missing():
        sys.exit(missing())
    with serve() as environment:
        return subprocess.run(command, env={**s3_environment.without_aws(), **environment}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
