import xml.etree.ElementTree as ET

import pytest
import synthetic_run

from isr_dpo.report.figures.figure import Figure
from isr_dpo.report.sections import sections

FIGURES = [
    "accuracy-by-policy",
    "score-by-policy",
    "words-by-round",
    "length-ratio",
    "answer-words",
    "win-rate-0",
    "claims",
    "judge-agreement",
    "dropped-rows",
    "label-mass",
    "training-loss",
    "training-reward-accuracy",
    "training-margin",
    "time-0",
]


@pytest.fixture(scope="module")
def drawn(whole_run: str) -> dict[str, Figure]:
    found = sections(synthetic_run.page(whole_run))
    return {figure.key: figure for section in found for figure in section.figures}


def test_a_finished_run_has_all_figures(drawn: dict[str, Figure]) -> None:
    assert list(drawn) == FIGURES
    assert all(figure.svg for figure in drawn.values())


@pytest.mark.parametrize("key", FIGURES)
def test_a_drawing_is_well_formed_and_takes_its_colours_from_the_page(drawn: dict[str, Figure], key: str) -> None:
    svg = drawn[key].svg
    assert svg is not None
    ET.fromstring(svg)
    assert "var(--c1)" in svg or "var(--c5)" in svg
    assert "#0" not in svg.replace(f'"#{key}', "").replace(f"(#{key}", "")
    assert "font-family" not in svg
    assert "style=" not in svg


def test_the_words_beside_a_drawing_give_its_values(drawn: dict[str, Figure]) -> None:
    assert drawn["accuracy-by-policy"].alt == (
        "Accuracy by policy: policy-01 53.8 %, policy-02 61.5 %, policy-03 66.7 %"
    )
    assert drawn["length-ratio"].alt == "Length ratio, chosen to rejected: round 0 0.750, round 1 1.000, round 2 1.000"
    assert "chosen: round 0 3.0, round 1 8.0, round 2 8.0; rejected: round 0 4.0" in drawn["words-by-round"].alt
    assert drawn["answer-words"].alt == "Words an answer: policy-01: dev 9.0, test 9.0; policy-03: dev 9.0, test 9.0"
    assert drawn["dropped-rows"].alt.endswith("round 1 20.0% dropped, round 2 20.0% dropped")
    assert (
        "order consistency: round 1 80.0%, round 2 90.0%; first position: round 1 56.0%" in drawn["judge-agreement"].alt
    )
    assert "Reward accuracy: seed DPO from 0.500 to 0.887; round 1 from 0.500" in drawn["training-reward-accuracy"].alt
    assert drawn["training-margin"].alt.count(" to 0.") == 3
    assert drawn["win-rate-0"].alt == "Head to head: dev: won 54.5%, tied 18.2%, lost 27.3%"
    assert drawn["claims"].alt == "Unsupported claims an answer: policy-01 0.00, policy-03 1.00"
    assert "train: round 0 20 s, round 1 40 s" in drawn["time-0"].alt
