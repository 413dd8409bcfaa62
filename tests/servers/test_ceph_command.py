import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.servers import ceph

COMMAND = [sys.executable, "-m", "tests.servers.ceph"]
REPOSITORY = Path(__file__).parents[2]


@pytest.mark.skipif(bool(ceph.missing()), reason=ceph.missing())
def test_a_command_runs_beside_a_gateway_that_ends_with_it() -> None:
    script = f"'{sys.executable}' -c \"$FETCH\" && echo $AWS_ENDPOINT_URL $RUN_BUCKET; exit 7"
    fetch = "import os, urllib.request; urllib.request.urlopen(os.environ['AWS_ENDPOINT_URL'])"
    done = subprocess.run(
        [*COMMAND, "sh", "-c", script],
        cwd=REPOSITORY,
        env={**os.environ, "FETCH": fetch},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 7, done.stderr
    url, bucket = done.stdout.split()
    assert bucket == "runs"
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(url)


def test_without_ceph_the_packages_are_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "true"], cwd=REPOSITORY, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "apt-get install --no-install-recommends ceph-mon ceph-osd radosgw" in done.stderr
