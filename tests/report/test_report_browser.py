"""The page in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import synthetic_run
from synthetic_run import HOSTILE, recipe

from isr_dpo.report import render
from isr_dpo.report.data import gather
from isr_dpo.report.reading import KeptRun
from tests import browser
from tests.browser import Page

# Relative luminance and contrast as WCAG 2.2 defines them; the background is the nearest one that is not see-through.
CONTRASTS = """(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const rgba = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
  const behind = node => { for (; node; node = node.parentElement) {
    const colour = rgba(getComputedStyle(node).backgroundColor);
    if (colour[3] === 255) return colour; } return [255, 255, 255]; };
  const found = {};
  for (const node of document.querySelectorAll("main *, header *, nav *, footer")) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility() || node.matches(":disabled")) continue;
    const style = getComputedStyle(node), svg = node.namespaceURI.endsWith("svg");
    const [a, b] = [light(rgba(svg ? style.fill : style.color)), light(behind(node))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) found[`${node.tagName}.${node.className?.baseVal ?? node.className}`] = ratio;
  }
  return found;
})()"""


def write(folder: Path, *runs: KeptRun) -> str:
    path = folder / "page.html"
    path.write_text(render(gather(runs, made="")), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def url(whole_run: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("page"), KeptRun(whole_run, recipe(), "smoke"))


@pytest.fixture(scope="module")
def opened(url: str) -> Iterator[Page]:
    """A browser for the whole module; each test loads the page anew."""
    with browser.opened(url) as page:
        yield page


@pytest.fixture
def page(opened: Page, url: str) -> Iterator[Page]:
    opened.resize(1280)
    opened.prefer(dark=False)
    opened.go(url)
    yield opened
    assert opened.problems == []


def count(page: Page, browser_id: str) -> str:
    said: str = page.evaluate(f"document.querySelector('#{browser_id} output').textContent")
    return said


def choose(page: Page, browser_id: str, name: str, value: str) -> None:
    """As a user would: the field changes, then says so."""
    field = f"document.querySelector('#{browser_id} form').elements[{json.dumps(name)}]"
    page.evaluate(
        f"({field}.value = {json.dumps(value)}, {field}.dispatchEvent(new Event('input', {{bubbles: true}})))"
    )


def stage(page: Page, browser_id: str) -> str:
    said: str = page.evaluate(f"document.querySelector('#{browser_id} .stage').innerText")
    return said


def test_figures_are_drawn(page: Page) -> None:
    boxes = page.evaluate(
        "[...document.querySelectorAll('.plot svg')].map(p => p.getBoundingClientRect()).map(b => [b.width, b.height])"
    )
    assert len(boxes) == 14
    assert all(width > 250 and height > 100 for width, height in boxes)
    marks = page.evaluate("[...document.querySelectorAll('.plot svg path')].filter(p => p.getTotalLength() > 1).length")
    assert marks > 200
    strokes = "new Set([...document.querySelectorAll('.plot path')].map(p => getComputedStyle(p).stroke)).size"
    assert page.evaluate(strokes) >= 5


def test_the_very_same_pairs_stand_in_the_table_of_agreement_as_they_were_judged_again(page: Page) -> None:
    shown = page.evaluate(
        "[...document.querySelectorAll('table[id^=table-agreement] tbody tr')].filter(row => row.checkVisibility())"
        ".map(row => [...row.cells].slice(0, 4).map(cell => cell.innerText.replaceAll('\\n', ' ')))"
    )
    start = shown.index(["The very same pairs, judged again"])
    assert shown[start + 1 : start + 6] == [
        ["smoke, policy 2 without context", "anna", "25.0 6.1–43.9", "5 of 20"],
        ["smoke, policy 2 context of smoke", "anna", "50.0 35.1–64.9", "8 of 16"],
        ["smoke, policy 2 another video's", "anna", "–", "0 of 0"],
        ["with less without 3 choices changed", "–", "+18.8 +0.0 to +41.7", "–"],
        ["Reported in the paper"],
    ]


def test_nothing_is_asked_of_the_network(page: Page) -> None:
    kinds = "performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).map(e => e.name)"
    assert page.evaluate(kinds) == []


@pytest.mark.parametrize("width", [320, 360, 400, 768])
def test_nothing_runs_over_the_edge_of_a_phone(page: Page, width: int) -> None:
    page.resize(width)
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    root = "document.documentElement"
    seen = page.evaluate(f"[{root}.clientWidth, {root}.scrollWidth, document.body.scrollWidth]")
    assert seen == [width] * 3


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_stands_out_from_what_is_behind_it(page: Page, dark: bool) -> None:
    page.prefer(dark=dark)
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert page.evaluate(CONTRASTS) == {}
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(19, 22, 26)" if dark else "rgb(251, 251, 249)")


def test_light_and_dark_can_be_switched(page: Page) -> None:
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 22, 26)"
    assert page.evaluate("document.getElementById('theme').textContent") == "Light"


def test_filters_let_through_what_they_say(page: Page) -> None:
    assert count(page, "samples-browser") == "1 of 80"
    choose(page, "samples-browser", "round", "2")
    assert count(page, "samples-browser") == "1 of 40"
    choose(page, "samples-browser", "outcome", "tie")
    assert count(page, "samples-browser") == "1 of 2"
    assert "dropped: tie" in stage(page, "samples-browser")
    page.click("#samples-browser [name=swayed]")
    assert count(page, "samples-browser") == "1 of 2", "a tie of two orders that disagree"
    choose(page, "samples-browser", "outcome", "preferred")
    assert count(page, "samples-browser") == "none"
    assert "Nothing here fits these filters." in stage(page, "samples-browser")


def test_text_is_searched_for_in_every_field(page: Page) -> None:
    page.evaluate("document.querySelector('#samples-browser [name=text]').focus()")
    page.type("clip-003-q33")
    assert count(page, "samples-browser") == "1 of 2"
    page.type(" nowhere")
    assert count(page, "samples-browser") == "none"


def test_keys_move_through_the_samples(page: Page) -> None:
    page.evaluate("document.querySelector('#samples-browser').scrollIntoView({block: 'start', behavior: 'instant'})")
    first = stage(page, "samples-browser")
    for key, place in [("j", 2), ("ArrowRight", 3), ("k", 2), ("ArrowLeft", 1), ("ArrowLeft", 1)]:
        page.press(key)
        assert count(page, "samples-browser") == f"{place} of 80"
    assert stage(page, "samples-browser") == first
    assert count(page, "flips-browser") == "1 of 14", "the other one stays where it is"


def test_keys_typed_into_a_field_stay_there(page: Page) -> None:
    page.evaluate("document.querySelector('#samples-browser [name=text]').focus()")
    page.press("j")
    assert page.evaluate("document.querySelector('#samples-browser [name=text]').value") == "j"


def test_a_list_opens_on_what_is_clicked_in_it(page: Page) -> None:
    page.click("#samples-browser [name=list]")
    assert page.evaluate("document.querySelectorAll('#samples-browser .list li').length") == 80
    seventh = "document.querySelector('#samples-browser .list li:nth-child(7) button')"
    seventh = "document.querySelector('#samples-browser .list li:nth-child(7) button')"
    question = page.evaluate(f"{seventh}.lastChild.textContent")
    page.click("#samples-browser .list li:nth-child(7) button")
    assert count(page, "samples-browser") == "7 of 80"
    assert question in stage(page, "samples-browser")
    assert page.evaluate("document.activeElement.name") == "next", "the focus goes on from there"


def test_a_sample_shows_all_that_the_judge_saw_and_said(page: Page) -> None:
    choose(page, "samples-browser", "round", "2")
    shown = stage(page, "samples-browser")
    assert "Response 1: chosen" in shown
    assert "Description after looking back" in shown
    assert "Rationale, response 2 shown first" in shown
    changed = "[...document.querySelectorAll('#samples-browser .stage ins')].map(one => one.textContent)"
    assert "blue" in page.evaluate(changed)
    images = "[...document.querySelectorAll('#samples-browser .stage img')].map(image => image.naturalWidth)"
    assert page.evaluate(images) == [32] * 8


def test_flips_follow_the_two_policies_that_are_chosen(page: Page) -> None:
    said = "document.querySelector('#flips-browser .counts').textContent"
    assert "dev: 6 went right and 1 wrong, of 39 scored in both" in page.evaluate(said)
    choose(page, "flips-browser", "first", "1")
    assert count(page, "flips-browser") == "1 of 4"
    choose(page, "flips-browser", "move", "wrong")
    assert count(page, "flips-browser") == "1 of 1"
    shown = stage(page, "flips-browser")
    assert "where does it go, 5?" in shown
    assert "policy-02: right, score 5" in shown
    assert "policy-03: wrong, score 1" in shown
    choose(page, "flips-browser", "second", "1")
    assert "no set in common, or are the same" in page.evaluate(said)


def test_a_keyboard_reaches_everything_and_shows_where_it_is(page: Page) -> None:
    page.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    unnamed = """[...document.querySelectorAll("button, select, input, [tabindex]")]
      .filter(node => node.checkVisibility())
      .filter(node => !node.labels?.length && !node.textContent.trim() && !node.getAttribute("aria-label")).length"""
    assert page.evaluate(unnamed) == 0
    page.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_without_the_script_samples_and_flips_stand_still(whole_run: str, tmp_path: Path) -> None:
    html = render(gather([KeptRun(whole_run, recipe(), "smoke")], made=""))
    path = tmp_path / "page.html"
    path.write_text(html.replace('"use strict";', '"use strict"; /* another hash: blocked */', 1), encoding="utf-8")
    with browser.opened(path.as_uri()) as page:
        assert page.evaluate("document.querySelectorAll('#samples .static article').length") == 4
        visible = "document.querySelector('#samples .static').checkVisibility()"
        assert page.evaluate(visible)
        assert page.evaluate("document.querySelectorAll('#flips .static article').length") == 6
        assert any("Content Security Policy" in problem for problem in page.problems), "altered scripts do not run"


@pytest.fixture(scope="module")
def hostile(hostile_run: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    runs = [KeptRun(hostile_run, recipe(), name) for name in (HOSTILE, f"</script><!-- {HOSTILE}")]
    runs[1] = KeptRun(hostile_run + "/", recipe(), runs[1].name)
    with browser.opened(write(tmp_path_factory.mktemp("hostile"), *runs)) as page:
        yield page


def test_hostile_text_is_text_and_nothing_of_it_runs(hostile: Page) -> None:
    assert hostile.evaluate("document.scripts.length") == 2
    assert hostile.evaluate("document.querySelectorAll('[onerror], img:not([src^=\"data:image/\"])').length") == 0
    assert HOSTILE in stage(hostile, "samples-browser")
    assert HOSTILE in stage(hostile, "flips-browser")
    shown: Any = hostile.evaluate(
        "document.querySelector('#flips-browser [name=first]').selectedOptions[0].textContent"
    )
    assert shown == f"{HOSTILE} · policy-01"
    hostile.click("#samples-browser [name=list]")
    assert HOSTILE in hostile.evaluate("document.querySelector('#samples-browser .list').innerText")
    assert hostile.problems == []


def test_hostile_text_breaks_no_layout(hostile: Page) -> None:
    hostile.resize(360)
    root = "document.documentElement"
    assert hostile.evaluate(f"[{root}.clientWidth, {root}.scrollWidth]") == [360, 360]


def test_line_separators_and_comments_do_not_end_the_data(tmp_path: Path) -> None:
    text = "a\u2028b\u2029c <!-- <script> ]]> javascript:alert(1)"
    synthetic_run.write(str(tmp_path / "run"), text=text)
    with browser.opened(write(tmp_path, KeptRun(str(tmp_path / "run"), recipe(), "smoke"))) as page:
        assert page.evaluate("data.samples[0].responses[0]").startswith(text)
        assert page.problems == []
