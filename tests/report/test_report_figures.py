import xml.etree.ElementTree as ET

import pytest
import synthetic_run
from synthetic_run import recipe

from isr_dpo.report.data import Page, gather
from isr_dpo.report.figures import Figure, sections

FIGURES = [
    "accuracy-by-policy",
    "score-by-policy",
    "words-by-round",
    "length-ratio",
    "judge-agreement",
    "dropped-rows",
    "label-mass",
    "training-loss",
    "training-reward-accuracy",
    "training-margin",
]


def figures_of(run_uri: str) -> dict[str, Figure]:
    page: Page = gather(run_uri, recipe(), made="")
    return {figure.key: figure for section in sections(page) for figure in section.figures}


@pytest.fixture(scope="module")
def drawn(whole_run: str) -> dict[str, Figure]:
    return figures_of(whole_run)


def test_a_finished_run_has_all_figures(drawn: dict[str, Figure]) -> None:
    assert list(drawn) == FIGURES
    assert all(figure.svg for figure in drawn.values())


@pytest.mark.parametrize("key", FIGURES)
def test_a_drawing_is_well_formed_and_takes_its_colours_from_the_page(drawn: dict[str, Figure], key: str) -> None:
    svg = drawn[key].svg
    assert svg is not None
    ET.fromstring(svg)
    assert "var(--c1)" in svg
    assert "#0" not in svg.replace(f'"#{key}', "").replace(f"(#{key}", "")
    assert "font-family" not in svg


def test_the_words_beside_a_drawing_give_its_values(drawn: dict[str, Figure]) -> None:
    assert drawn["accuracy-by-policy"].alt == (
        "Accuracy by policy: policy-01 48.2 %, policy-02 57.4 %, policy-03 61.1 %"
    )
    assert drawn["length-ratio"].alt == "Length ratio, chosen to rejected: round 1 1.176, round 2 1.294"
    assert "chosen: round 1 10.0, round 2 11.0; rejected: round 1 8.5" in drawn["words-by-round"].alt
    assert drawn["dropped-rows"].alt.endswith("round 1 20.0% dropped, round 2 20.0% dropped")
    assert (
        "order consistency: round 1 80.0%, round 2 90.0%; first position: round 1 56.0%" in drawn["judge-agreement"].alt
    )
    assert "seed DPO from" in drawn["training-loss"].alt
    assert "Reward accuracy: seed DPO from 0.500 to 0.887; round 1 from 0.500" in drawn["training-reward-accuracy"].alt
    assert drawn["training-margin"].alt.count(" to 0.") == 3


def test_figures_that_have_no_values_yet_are_empty(run_uri: str) -> None:
    synthetic_run.write_training(run_uri, 0)
    svgs = {key: figure.svg for key, figure in figures_of(run_uri).items()}
    assert {key for key, svg in svgs.items() if svg} == {"training-loss", "training-reward-accuracy", "training-margin"}
