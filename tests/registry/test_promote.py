"""`isr-dpo promote` and `rollback`: the gate, what is shown, the aliases and tags; over runs without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from isr_dpo import registry, removed
from isr_dpo.cli import main
from isr_dpo.errors import DataError, GuardTripped, RecipeError
from isr_dpo.mlflow_client import open_client
from isr_dpo.registry import champion as champions
from isr_dpo.registry import decide, promote, rollback
from isr_dpo.stores import open_store
from tests.registry.registered import ROWS, RegisteredRun, aliases, everything, marks
from tests.servers.mlflow_server import fresh_database


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return fresh_database(tmp_path)


def crowned(uri: str, folder: Path, right: int = 20, **policy: Any) -> RegisteredRun:
    """A run whose policy 1 is the champion."""
    run = RegisteredRun(uri, folder)
    run.policy(1, marks(right=right), **policy)
    promote(decide("m", uri=uri, version="1"), uri=uri, force=True)
    return run


def tags(uri: str, version: str) -> dict[str, str]:
    found = open_client(uri).get_model_version("m", version).tags
    return {key.removeprefix("isr_dpo."): value for key, value in found.items()}


def test_a_better_version_follows_and_its_tags_say_why(uri: str, tmp_path: Path) -> None:
    crowned(uri, tmp_path, right=20).policy(2, marks(right=30), words=3)
    decision = decide("m", uri=uri)
    assert decision.objections == ()
    made = promote(decision, uri=uri)
    assert (made.champion, made.previous, made.done) == ("2", "1", True)
    assert aliases(uri) == {"challenger": "2", "champion": "2", "previous": "1"}
    found = tags(uri, "2")
    assert found["gate"] == "passed"
    assert found["promoted_from"] == "1"
    assert found["promoted_at"].endswith("+00:00")
    assert float(found["gate.gain"]) == 0.25  # 10 of 40 questions more
    assert float(found["gate.gain_low"]) > 0
    assert float(found["gate.words_ratio"]) == 1.5
    assert found["gate.questions"] == "40"
    assert found["gate.grader"] == "rule-based grader (no model) by the caption protocol"


@pytest.mark.parametrize(
    ("champion", "candidate", "reason"),
    [
        ({}, {"scores": marks(right=19)}, r"it gains -0\.0250 in accuracy \(promote\.min_gain: 0\)"),
        ({}, {"scores": [*marks(right=14, of=20), *marks(right=8, of=20)]}, r"as low as -0\.\d+, the lower end"),
        ({}, {"scores": marks(right=30), "words": 4}, r"2\.00 times the champion's words, 4\.0 and 2\.0"),
        ({}, {"scores": marks(right=30, unscored=1)}, r"1 of 40 answers of version 2 have no score, 2\.5 %"),
        ({"unscored": 3}, {"scores": marks(right=30)}, r"3 of 40 answers of version 1 have no score"),
    ],
    ids=["worse", "not sure", "longer", "unscored", "champion unscored"],
)
def test_the_gate_refuses_and_says_by_which_limit(
    champion: dict[str, int], candidate: dict[str, Any], reason: str, uri: str, tmp_path: Path
) -> None:
    run = RegisteredRun(uri, tmp_path, promote={"min_gain_low": -0.1})
    run.policy(1, marks(right=20, **champion))
    promote(decide("m", uri=uri), uri=uri, force=True)
    run.policy(2, **candidate)
    decision = decide("m", uri=uri, version="2")
    assert len(decision.objections) == 1
    with pytest.raises(GuardTripped, match=rf"m version 2 is not promoted:\n  - .*{reason}"):
        promote(decision, uri=uri)
    assert aliases(uri)["champion"] == "1"
    assert promote(decision, uri=uri, force=True).done
    assert aliases(uri)["champion"] == "2"
    assert tags(uri, "2")["gate"].startswith("forced: ")


def test_nothing_scored_in_both_is_no_reason_to_promote(uri: str, tmp_path: Path) -> None:
    run = RegisteredRun(uri, tmp_path, promote={"max_unscored_fraction": 0.5})
    run.policy(1, marks(right=20, unscored=20))
    promote(decide("m", uri=uri), uri=uri)
    run.policy(2, list(reversed(marks(right=20, unscored=20))))
    assert decide("m", uri=uri, version="2").objections == ("no question is scored in both",)


def test_the_gate_is_the_candidates_own(uri: str, tmp_path: Path) -> None:
    crowned(uri, tmp_path, right=20)
    lenient = RegisteredRun(uri, tmp_path, "lenient", promote={"min_gain": -0.2, "min_gain_low": -1})
    assert lenient.policy(1, marks(right=18)) == "2"
    assert decide("m", uri=uri, version="2").objections == ()
    strict = RegisteredRun(uri, tmp_path, "strict", promote={"min_gain": 0.3})
    assert strict.policy(1, marks(right=30)) == "3"
    assert len(decide("m", uri=uri, version="3").objections) == 1


def test_the_first_champion_is_compared_with_nothing_and_that_is_said(uri: str, tmp_path: Path) -> None:
    RegisteredRun(uri, tmp_path).policy(1, marks(right=4))
    decision = decide("m", uri=uri)
    assert decision.reason == "there is no champion yet to compare with"
    assert promote(decision, uri=uri).previous is None
    assert tags(uri, "1")["gate"] == "no champion to compare with"
    assert "promoted_from" not in tags(uri, "1")
    assert not promote(decide("m", uri=uri), uri=uri).done, "it is the champion already"
    with pytest.raises(RecipeError, match="no previous champion"):
        rollback("m", uri=uri)


def test_a_first_champion_that_nobody_could_score_is_refused(uri: str, tmp_path: Path) -> None:
    RegisteredRun(uri, tmp_path).policy(1, marks(right=4, unscored=20))
    with pytest.raises(GuardTripped, match="20 of 40 answers of version 1 have no score"):
        promote(decide("m", uri=uri), uri=uri)


def test_a_dry_run_changes_nothing(uri: str, tmp_path: Path) -> None:
    crowned(uri, tmp_path).policy(2, marks(right=30))
    before = everything(uri)
    assert promote(decide("m", uri=uri), uri=uri, dry_run=True).done is False
    assert main(["promote", "m", "--dry-run", "--force", "--tracking-uri", uri]) == 0
    assert everything(uri) == before
    promote(decide("m", uri=uri), uri=uri)
    before = everything(uri)
    assert rollback("m", uri=uri, dry_run=True).champion == "1"
    assert main(["rollback", "m", "--dry-run", "--tracking-uri", uri]) == 0
    assert everything(uri) == before


def test_rollback_goes_back_and_a_second_one_undoes_it(uri: str, tmp_path: Path) -> None:
    run = crowned(uri, tmp_path)
    for index, right in ((2, 30), (3, 38)):
        run.policy(index, marks(right=right))
        promote(decide("m", uri=uri), uri=uri)
    assert aliases(uri) == {"challenger": "3", "champion": "3", "previous": "2"}
    assert rollback("m", uri=uri).champion == "2"
    assert aliases(uri) == {"challenger": "3", "champion": "2", "previous": "3"}
    assert tags(uri, "2")["gate"] == "rollback from version 3"
    assert rollback("m", uri=uri).champion == "3"
    assert aliases(uri) == {"challenger": "3", "champion": "3", "previous": "2"}


class _Killed(BaseException):
    pass


class _Cut:
    """MLflow's client until its `calls`-th change; the process is gone then."""

    def __init__(self, client: Any, calls: int) -> None:
        self._client, self._left = client, calls

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if not name.startswith(("set_", "delete_", "update_", "create_")):
            return method

        def counted(*args: Any, **kwargs: Any) -> Any:
            if self._left == 0:
                raise _Killed
            self._left -= 1
            return method(*args, **kwargs)

        return counted


def cut_after(calls: int, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(champions, "open_client", lambda uri, **options: _Cut(open_client(uri, **options), calls))


@pytest.mark.parametrize("back", [False, True], ids=["again", "rollback"])
@pytest.mark.parametrize("calls", [0, 1, 7, 13, 14])  # after 13 tags the alias previous, then champion
def test_cut_at_any_change_a_champion_stands_and_the_next_command_mends_it(
    calls: int, back: bool, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = crowned(uri, tmp_path, right=10)
    run.policy(2, marks(right=20))
    promote(decide("m", uri=uri), uri=uri)
    run.policy(3, marks(right=30))
    decision = decide("m", uri=uri)
    with monkeypatch.context() as patch:
        cut_after(calls, patch)
        with pytest.raises(_Killed):
            promote(decision, uri=uri)
    assert aliases(uri)["champion"] == "2"
    assert aliases(uri)["previous"] == ("2" if calls == 14 else "1")
    if back:
        assert rollback("m", uri=uri).champion == "1"
        assert aliases(uri) == {"challenger": "3", "champion": "1", "previous": "2"}
        return
    promote(decide("m", uri=uri), uri=uri)
    assert aliases(uri) == {"challenger": "3", "champion": "3", "previous": "2"}


@pytest.mark.parametrize("calls", range(5))
def test_a_rollback_cut_at_any_change_is_completed_by_the_next(
    calls: int, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowned(uri, tmp_path).policy(2, marks(right=30))
    promote(decide("m", uri=uri), uri=uri)
    with monkeypatch.context() as patch:
        cut_after(calls, patch)
        with pytest.raises(_Killed):
            rollback("m", uri=uri)
    assert aliases(uri)["champion"] == "2"
    assert rollback("m", uri=uri).champion == "1"
    assert aliases(uri) == {"challenger": "2", "champion": "1", "previous": "2"}


def test_a_champion_that_changed_while_one_decided_is_not_overrun(uri: str, tmp_path: Path) -> None:
    run = crowned(uri, tmp_path)
    run.policy(2, marks(right=30))
    decision = decide("m", uri=uri)
    run.policy(3, marks(right=40))
    promote(decide("m", uri=uri), uri=uri)
    with pytest.raises(GuardTripped, match="became version 3 while this was decided"):
        promote(decision, uri=uri, force=True)


def test_a_version_without_weights_is_neither_promoted_nor_gone_back_to(uri: str, tmp_path: Path) -> None:
    crowned(uri, tmp_path, right=20).policy(2, marks(right=30))
    source = registry.source_of("models:/m/2", uri=uri)
    removed.remove(source, [], why="nobody needs it")
    before = everything(uri)
    with pytest.raises(DataError, match="its weights were removed by `isr-dpo gc`"):
        promote(decide("m", uri=uri), uri=uri, force=True)
    assert everything(uri) == before
    open_store(source).delete(f"{source}/removed.json")
    promote(decide("m", uri=uri), uri=uri)
    removed.remove(registry.source_of("models:/m/1", uri=uri), [], why="nobody needs it")
    before = everything(uri)
    with pytest.raises(DataError, match="its weights were removed"):
        rollback("m", uri=uri)
    assert everything(uri) == before


def test_a_promotion_forgets_the_figures_of_an_earlier_one(uri: str, tmp_path: Path) -> None:
    run = crowned(uri, tmp_path)
    run.policy(2, marks(right=30))
    promote(decide("m", uri=uri), uri=uri)
    rollback("m", uri=uri)
    open_client(uri).set_model_version_tag("m", "2", "isr_dpo.run_uri", str(tmp_path / "gone"))
    promote(decide("m", uri=uri, version="2"), uri=uri, force=True)
    assert not [key for key in tags(uri, "2") if key.startswith("gate.")]


def test_the_terminal_shows_figures_and_some_flips_and_the_file_all(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    run = crowned(uri, tmp_path, right=20)
    run.policy(2, [*marks(right=2, of=4), *marks(right=34, of=36)])
    assert main(["promote", "m", "--flips", "3", "--json", str(tmp_path / "all.json"), "--tracking-uri", uri]) == 0
    said = capsys.readouterr().out
    lines = {line.split("  ")[0]: line.split() for line in said.splitlines()}
    assert "dev: rule-based grader (no model) by the caption protocol" in said
    assert lines["accuracy %"][2:5] == ["50.0", "90.0", "+40.0"]
    assert lines["words an answer"][3:] == ["2.0", "2.0"]
    assert lines["unscored"][1:] == ["0", "0"]
    assert "40 questions on 20 videos are scored in both; answers that changed sides: 18 gained, 2 lost" in said
    assert said.count("  champion   answer 1") == said.count("  candidate  answer 2") == 3
    assert said.count("\nlost  ") == 2, "losses are not buried under gains"
    assert "17 more" in said
    assert "m: version 2 is now the champion, after version 1 (accuracy on dev +0.4000" in said
    tree = json.loads((tmp_path / "all.json").read_text())
    assert len(tree["flips"]) == 20
    assert tree["flips"][0].keys() == {"id", "video", "question", "truth", "champion", "candidate", "gained"}
    assert tree["comparison"]["accuracy"]["mean"] == pytest.approx(0.4)
    assert [side["accuracy"] for side in tree["sides"]] == [0.9, 0.5]


def test_what_a_model_wrote_does_not_act_on_the_terminal(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crowned(uri, tmp_path, right=0)
    run = RegisteredRun(uri, tmp_path, "hostile")
    text = "\x1b[2J\x1b]0;title\x07[bold red]x[/bold red]\r\nversion 2 is now the champion " + "long " * 1000
    run.answers(1, ROWS, [text] * len(ROWS))
    run.policy(1, marks(right=40), answered=False)
    assert main(["promote", "m", "--dry-run", "--flips", "1", "--tracking-uri", uri]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\x07" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("  candidate")]
    assert "[bold red]x[/bold red] version 2 is now the champion" in line
    assert len(line) < 500


def test_a_refusal_is_an_exit_code_and_figures_are_shown_all_the_same(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    crowned(uri, tmp_path, right=30).policy(2, marks(right=20))
    assert main(["promote", "m", "--version", "2", "--tracking-uri", uri]) == GuardTripped.exit_code
    captured = capsys.readouterr()
    assert "accuracy %" in captured.out
    assert "m version 2 is not promoted:" in captured.err
    assert "promote.min_gain: 0" in captured.err
    assert aliases(uri)["champion"] == "1"


def test_unknown_names_are_named(uri: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no registered model 'm'"):
        decide("m", uri=uri)
    RegisteredRun(uri, tmp_path).policy(1, None)
    with pytest.raises(RecipeError, match=r"no alias 'challenger'; it has none"):
        decide("m", uri=uri)
    with pytest.raises(RecipeError, match="no version 7 of 'm'"):
        decide("m", uri=uri, version="7")
    with pytest.raises(RecipeError, match=r"no MLflow database .*typo\.db"):
        registry.rollback("m", uri=f"sqlite:///{tmp_path}/typo.db")
    assert not (tmp_path / "typo.db").exists()
