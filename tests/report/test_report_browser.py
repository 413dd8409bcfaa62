"""The page in a real browser: Debian's chromium, where it is installed."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import HOSTILE, recipe

from isr_dpo.report import render
from isr_dpo.report.data import gather

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--allow-file-access-from-files", "--virtual-time-budget=5000"),
)
PROBE = """<!DOCTYPE html><meta charset="utf-8">
<iframe id="f" src="page.html" style="width:390px;height:900px;border:0"></iframe><pre id="seen"></pre><script>
f.onload = () => {
  const page = f.contentDocument, root = page.documentElement;
  for (const part of page.querySelectorAll("details")) part.open = true;
  const plots = [...page.querySelectorAll(".plot svg")].map(p => p.getBoundingClientRect());
  seen.textContent = JSON.stringify({
    width: root.clientWidth, content: root.scrollWidth, body: page.body.scrollWidth,
    plots: plots.map(box => [box.width, box.height]),
    strokes: new Set([...page.querySelectorAll(".plot path")].map(p => getComputedStyle(p).stroke)).size,
    images: [...page.images].map(i => i.naturalWidth),
    scripts: page.scripts.length,
    focusable: page.querySelectorAll("summary, a[href], [tabindex='0']").length,
    question: page.querySelector("article h3").textContent,
  });
};
</script>"""


def look(run_uri: str, folder: Path) -> dict[str, Any]:
    """The page of the run in a frame as wide as a phone, every fold open."""
    (folder / "page.html").write_text(render(gather(run_uri, recipe(), made="")), encoding="utf-8")
    (folder / "probe.html").write_text(PROBE)
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        *QUIET,
        f"--user-data-dir={folder / 'profile'}",
        "--dump-dom",
        (folder / "probe.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    seen = re.search(r'<pre id="seen">(.+?)</pre>', done.stdout, re.DOTALL)
    assert seen is not None, done.stderr[-2000:]
    tree: dict[str, Any] = json.loads(html.unescape(seen.group(1)))
    return tree


def test_figures_are_drawn_and_nothing_runs_over_a_phone_s_edge(whole_run: str, tmp_path: Path) -> None:
    seen = look(whole_run, tmp_path)
    assert seen["width"] in range(370, 391)
    assert max(seen["content"], seen["body"]) <= seen["width"]
    assert len(seen["plots"]) == 10
    assert all(width > 300 and height > 150 for width, height in seen["plots"])
    assert seen["strokes"] >= 5
    assert seen["images"] == [32] * 96
    assert seen["focusable"] > 12


def test_hostile_text_is_text_in_a_browser(hostile_run: str, tmp_path: Path) -> None:
    seen = look(hostile_run, tmp_path)
    assert seen["scripts"] == 0
    assert seen["question"] == f"what does {HOSTILE} do after the disc, in round 2?"
    assert seen["images"] == [32] * 96
    assert max(seen["content"], seen["body"]) <= seen["width"]
