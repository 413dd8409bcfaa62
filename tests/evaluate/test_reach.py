from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import pytest

from isr_dpo.errors import KeyRefused, OutsideError, RecipeError
from isr_dpo.evaluate.reach import check_endpoint
from tests.evaluate.grading import quick, settings
from tests.servers.completions import Manner, Said, Served, completions_server
from tests.servers.grader_server import KEY, grader_server


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)


def test_a_good_key_and_a_known_model_cost_one_free_call() -> None:
    with grader_server() as server:
        check_endpoint(settings(server.url))
    assert server.looked_up == ["/v1/models/grader-1"]
    assert server.requests == []


def test_a_wrong_key_is_found_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-one")
    with grader_server() as server, pytest.raises(KeyRefused, match="refuses the key in OPENAI_API_KEY") as caught:
        check_endpoint(settings(server.url))
    assert "sk-wrong-one" not in str(caught.value)


def test_an_unknown_model_is_found() -> None:
    with grader_server() as server, pytest.raises(RecipeError, match=r"evaluate\.model: .* has no 'grader-9'"):
        check_endpoint(settings(server.url, model="grader-9"))


def only(said: dict[str, Said]) -> contextlib.AbstractContextManager[Served[bytes]]:
    """A server that says this on these paths, and knows no others."""
    return completions_server(bytes, len, lambda asked, n: Manner(), lambda a, b: {}, lambda call: said.get(call.path))


LIST = Said(tree={"object": "list", "data": [{"id": "a", "object": "model", "created": 0, "owned_by": "x"}]})


def test_a_server_that_only_lists_its_models_is_asked_for_the_list() -> None:
    with only({"/v1/models": LIST}) as server:
        check_endpoint(settings(server.url, model="a"))
        with pytest.raises(RecipeError, match="has no 'b', it has a"):
            check_endpoint(settings(server.url, model="b"))


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"/v1/models": Said(tree=["a"])},
        {"/v1/models": Said(tree={"object": "list", "data": [{"id": "openai/*"}]})},
        {"/v1/models/grader-1": Said(403, {"error": {"message": "Missing scopes: api.model.read"}})},
        {"/v1/models/grader-1": Said(401, {"error": {"message": "You lack permissions. Missing scopes: model.read"}})},
    ],
    ids=["no models", "another form", "wildcard", "403 scope", "401 scope"],
)
def test_a_server_that_does_not_tell_is_no_finding(said: dict[str, Said]) -> None:
    with only(said) as server:
        check_endpoint(settings(server.url))


def test_a_server_that_is_away_is_a_finding_only_where_evaluation_is_required(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "isr_dpo")
    with grader_server() as server:
        pass
    check_endpoint(settings(server.url))
    assert "cannot be reached" in caplog.text
    with pytest.raises(OutsideError, match="cannot be reached"):
        check_endpoint(settings(server.url, required=True))


def test_the_preflight_asks_before_a_run_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from isr_dpo import preflight
    from tests.loop import recipe_for

    with grader_server() as server:
        recipe = recipe_for(tmp_path, tmp_path, "unused", evaluate={"full_at": [1], **asked(server.url)})
        preflight._check_grader(recipe, str(tmp_path / "run"))
        monkeypatch.setenv("OPENAI_API_KEY", KEY[:-1])
        with pytest.raises(RecipeError, match="refuses the key in OPENAI_API_KEY"):
            preflight.check(recipe, str(tmp_path / "run"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    (tmp_path / "file").write_text("")
    nowhere = {"ledger": str(tmp_path / "file" / "ledger"), **asked("http://127.0.0.1:1/v1")}
    recipe = recipe_for(tmp_path, tmp_path, "unused", evaluate={"full_at": [1], **nowhere})
    with pytest.raises(RecipeError, match=r"file/ledger.*lies below a file"):
        preflight.check(recipe, str(tmp_path / "run"))


def asked(url: str) -> dict[str, str]:
    return {"grader": "openai", "model": "grader-1", "base_url": url}
