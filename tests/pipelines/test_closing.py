from rich.console import Console

from isr_dpo.config import Recipe, Tracking
from isr_dpo.report.summary import PolicySummary, Summary
from pipelines.closing import _pages, set_table, table

GRADED = {"accuracy": 0.512, "accuracy_low": 0.4, "accuracy_high": 0.6049, "score": 2.5, "score_low": 2.4}


def shown(*policies: PolicySummary) -> list[str]:
    console = Console(width=160, record=True, quiet=False)
    with console.capture() as capture:
        console.print(
            table(
                Summary(name="tiny", dev="dev", dataset={}, policies=policies), graded_by="rule-based grader (no model)"
            )
        )
    return capture.get().splitlines()


def test_a_policy_shows_its_figures_with_intervals() -> None:
    lines = shown(
        PolicySummary(
            index=2,
            preferences={"rows": 100, "order_consistency": 0.876, "dropped_tie": 3, "dropped_identical": 4},
            training={"reward_accuracy": 0.61},
            evaluation={"dev": {**GRADED, "score_high": 2.6, "words": 7.25, "unscored": 3}},
        )
    )
    (line,) = [line for line in lines if "policy-02" in line]
    for figure in ("51.2 [40.0, 60.5]", "2.50", "7.2", "0.61", "0.88", "7 of 100", " 3 "):
        assert figure in line
    assert "rule-based grader (no model)" in lines[0]


def test_what_is_not_there_yet_is_a_dash() -> None:
    (line,) = [line for line in shown(PolicySummary(index=1)) if "policy-01" in line]
    assert line.count("–") == 7


def test_a_benchmark_shows_a_line_a_set_with_its_protocol_and_what_is_unscored() -> None:
    sets = {"tgif": "tgif.qa.official.jsonl", "msvd": "msvd.qa.jsonl", "later": "later.qa.jsonl"}
    recipe = Recipe.model_validate({"name": "b", "iterations": 0, "model": {"start": "m"}, "data": {"sets": sets}})
    figures = {**GRADED, "score_high": 2.6, "words": 7.25, "rows": 100, "unscored": 3}
    system = PolicySummary(index=0, evaluation={"tgif": figures, "msvd": {**figures, "unscored": 4}})
    console = Console(width=100)
    with console.capture() as capture:
        summary = Summary(name="b", dev="tgif", dataset={}, policies=(system,))
        console.print(set_table(summary, recipe, graded_by="graded by m"))
    title, _, _, *lines = capture.get().splitlines()
    assert title.strip() == "b, graded by m"
    assert [line.split() for line in lines] == [
        ["tgif", "official", "100", "51.2", "[40.0,", "60.5]", "2.50", "3", "7.2"],
        ["msvd", "caption", "100", "51.2", "[40.0,", "60.5]", "2.50", "4", "7.2"],
        ["later", "caption", *["–"] * 5],
    ]


def test_mlflows_pages_are_opened_on_a_database_and_are_a_servers_own() -> None:
    recipe = Recipe.model_validate(
        {"name": "b", "iterations": 0, "model": {"start": "m"}, "data": {"sets": {"a": "a.qa.jsonl"}}}
    )
    assert _pages("run", recipe)["MLflow"].endswith("mlflow ui --backend-store-uri sqlite:///runs/mlflow.db")
    served = recipe.model_copy(update={"tracking": Tracking(uri="http://isr-dpo-mlflow.isr-dpo:5000")})
    assert _pages("s3://bucket/run", served)["MLflow"] == "http://isr-dpo-mlflow.isr-dpo:5000"
