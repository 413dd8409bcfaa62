"""The labelling page in a real browser, with real keys, clicks and taps."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from isr_dpo.annotate.choices import Choice, read_all
from isr_dpo.annotate.server import Server
from isr_dpo.annotate.session import open_session
from isr_dpo.records import Judged
from tests import browser
from tests.judged_run import judged_row, write

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason=browser.SKIP)
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"alert(1)\"> {{7*7}} &amp; \u202e \x07"
READY = "shown !== null && !busy"


@contextlib.contextmanager
def served(run_uri: str, judged: Sequence[Judged], *, port: int = 0) -> Iterator[Server]:
    write(run_uri, judged)
    session = open_session(run_uri, round_index=1, rows=99, seed=0, annotator="anna")
    with Server(session, port=port) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield serving
        finally:
            serving.shutdown()
            thread.join()


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(tmp_path / "run")


@pytest.fixture
def server(run: str) -> Iterator[Server]:
    with served(run, [judged_row(number) for number in range(8)]) as serving:
        yield serving


def kept(run_uri: str) -> list[Choice]:
    return read_all(run_uri, 1).get("anna", [])


def at(page: browser.Page, place: int) -> None:
    page.wait(f"place === {place} && {READY}")


def test_a_whole_sheet_is_labelled_with_the_keyboard(server: Server, run: str) -> None:
    keys = ["1", "2", "0", "u", "2", "U", "1", "1"]
    with browser.opened(server.url) as page:
        for place, key in enumerate(keys):
            at(page, place)
            assert page.evaluate("document.getElementById('count').textContent") == f"{place} of 8 labelled"
            page.press(key)
        page.wait("!document.getElementById('done').hidden")
        assert page.evaluate("document.getElementById('count').textContent") == "8 of 8 labelled"
        assert page.problems == []
    said = {"1": "first", "2": "second", "0": "tie", "u": "unclear", "U": "unclear"}
    assert server.session.state()["labelled"] == [said[key] for key in keys]
    assert [choice.id for choice in kept(run)] == [item.id for item in server.session.items]


def test_back_shows_the_choice_and_another_key_replaces_it(server: Server, run: str) -> None:
    with browser.opened(server.url) as page:
        at(page, 0)
        assert page.evaluate("document.getElementById('back').disabled")
        page.press("1")
        at(page, 1)
        page.press("ArrowLeft")
        at(page, 0)
        pressed = "[...document.querySelectorAll('[aria-pressed=true]')].map(b => b.dataset.verdict)"
        assert page.evaluate(pressed) == ["first"]
        page.press("2")
        at(page, 1)  # on to the first row that is open
        page.press("ArrowRight")
        at(page, 2)
        assert page.evaluate(pressed) == []
    (choice,) = kept(run)
    assert choice.choice == 1 - server.session.items[0].shown_first


def test_a_key_held_down_labels_one_row_and_a_shortcut_none(server: Server, run: str) -> None:
    with browser.opened(server.url) as page:
        at(page, 0)
        held = "document.dispatchEvent(new KeyboardEvent('keydown', {key: '1', repeat: true, bubbles: true}))"
        shortcut = "document.dispatchEvent(new KeyboardEvent('keydown', {key: '1', ctrlKey: true, bubbles: true}))"
        for script in (held, shortcut):
            page.evaluate(script)
        assert page.evaluate("place") == 0
        page.evaluate("for (let i = 0; i < 5; i++) document.querySelector('[data-verdict=tie]').click()")
        at(page, 1)
    assert len(kept(run)) == 1


def test_a_mouse_and_a_finger_label_too(server: Server) -> None:
    with browser.opened(server.url) as page:
        at(page, 0)
        page.click("[data-verdict=second]")
        at(page, 1)
        assert page.evaluate("document.activeElement.id") == "question"  # a space must not press the button again
    with browser.opened(server.url, width=390, height=750, touch=True) as page:
        at(page, 1)
        page.click("[data-verdict=unclear]")
        at(page, 2)
        page.click("#back")
        at(page, 1)
        assert page.problems == []
    assert server.session.state()["labelled"][:3] == ["second", "unclear", None]


def test_what_a_model_wrote_is_text(run: str) -> None:
    rows = [judged_row(number, prompt=HOSTILE, responses=(HOSTILE, f"{HOSTILE} {number}")) for number in range(2)]
    with served(run, rows) as serving, browser.opened(serving.url) as page:
        at(page, 0)
        item = serving.session.items[0]
        assert page.evaluate("document.getElementById('question').textContent") == HOSTILE
        texts = page.evaluate("[...document.querySelectorAll('.answer p')].map(p => p.textContent)")
        assert tuple(texts) == item.answers
        assert page.evaluate("document.title") == "Which answer is better?"
        assert page.evaluate("document.scripts.length") == 1
        assert page.evaluate("document.querySelectorAll('#row img').length") == 9
        assert page.problems == []
        page.press("1")
        at(page, 1)
    assert kept(run)[0].choice == item.shown_first


def test_frames_are_shown_and_play(server: Server) -> None:
    with browser.opened(server.url) as page:
        at(page, 0)
        widths = page.evaluate(
            "Promise.all([...document.querySelectorAll('#strip img')].map(i => i.decode().then(() => i.naturalWidth)))"
        )
        assert widths == [64] * 8
        assert page.evaluate("playing") is False  # the browser prefers reduced motion
        page.press(" ")
        page.wait("frame >= 2")
        page.click("#strip button:nth-child(6)")
        assert page.evaluate("[playing, frame]") == [False, 5]
        assert page.evaluate("document.getElementById('view').src === shown.urls[5]")


def test_a_server_that_ended_is_said_and_nothing_is_passed_over(run: str) -> None:
    judged = [judged_row(number) for number in range(4)]
    with contextlib.ExitStack() as stack:
        first = contextlib.ExitStack()
        serving = first.enter_context(served(run, judged))
        page = stack.enter_context(browser.opened(serving.url))
        at(page, 0)
        port = serving.port
        first.close()
        page.evaluate("loads.clear()")
        page.press("1")
        page.wait("document.getElementById('problem').textContent.includes('does not answer')")
        assert page.evaluate("place") == 0
        box = page.evaluate("document.getElementById('problem').getBoundingClientRect().toJSON()")
        assert box["top"] > 0
        assert box["bottom"] < 900
        stack.enter_context(served(run, judged, port=port))
        page.press("1")
        page.wait("document.getElementById('problem').textContent.includes('load the page again')")
        assert kept(run) == []
        page.go(f"http://127.0.0.1:{port}/")
        at(page, 0)
        page.press("1")
        at(page, 1)
    assert len(kept(run)) == 1


def test_another_site_can_neither_choose_nor_frame_the_page(server: Server, run: str, tmp_path: Path) -> None:
    row_id = server.session.items[0].id
    evil = tmp_path / "evil.html"
    evil.write_text(
        f"""<!DOCTYPE html><iframe id="f" src="{server.url}"></iframe><form id="g" method="post" target="f"
        action="{server.url}choices" enctype="text/plain"><input name='{{"id": "{row_id}", "verdict": "first", "seconds'
        value='": 1}}'></form><script>
        const body = JSON.stringify({{id: "{row_id}", verdict: "first", seconds: 1}});
        const tries = [{{mode: "no-cors"}}, {{mode: "cors"}}, {{headers: {{"X-Annotate-Token": "x"}}}}];
        window.tried = Promise.all(tries.map(t => fetch("{server.url}choices", {{method: "POST", body, ...t}})
          .then(a => a.type, e => "refused"))); g.submit();</script>"""
    )
    with browser.opened(evil.as_uri()) as page:
        assert page.evaluate("tried") == ["refused"] * 3
        page.wait("true")
        assert any("frame" in line.lower() for line in page.problems)
    assert kept(run) == []


@pytest.mark.parametrize("width", [320, 390, 700, 1280])
def test_nothing_runs_over_the_edge_and_the_choice_is_always_in_reach(run: str, width: int) -> None:
    long = "a very long answer that goes on and on " * 40 + "x" * 300
    row = judged_row(0, responses=(long, long + "y"), prompt=long[:400])
    boxes_of = "[...document.querySelectorAll('.bar button')].map(b => b.getBoundingClientRect().toJSON())"
    with served(run, [row]) as serving, browser.opened(serving.url, width=width, height=750) as page:
        at(page, 0)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for script in ("scrollTo(0, 0)", "scrollTo(0, document.body.scrollHeight)"):
            page.evaluate(script)
            boxes = page.evaluate(boxes_of)
            assert all(box["left"] >= 0 and box["right"] <= width for box in boxes)
            assert all(box["top"] >= 0 and box["bottom"] <= 750 and box["height"] >= 44 for box in boxes)


def test_text_has_contrast_in_light_and_in_dark(server: Server) -> None:
    luminance = """(colour => { const [r, g, b] = colour.match(/[\\d.]+/g).map(v => v / 255)
        .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b; })"""
    with browser.opened(server.url) as page:
        at(page, 0)
        for dark in (False, True):
            page.prefer(dark=dark)
            paper = page.evaluate(f"{luminance}(getComputedStyle(document.body).backgroundColor)")
            assert (paper < 0.05) == dark
            for selector in ("#question", ".quiet", ".answer p", "h3", "summary", ".bar button"):
                ink = page.evaluate(f"{luminance}(getComputedStyle(document.querySelector('{selector}')).color)")
                high, low = max(ink, paper), min(ink, paper)
                assert (high + 0.05) / (low + 0.05) >= 4.5, (selector, dark)
