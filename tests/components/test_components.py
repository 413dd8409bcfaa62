"""KFP ships the source text of a component's function: it must stand alone, and hold no logic."""

import ast
import builtins
import dis
import importlib
import inspect
import textwrap
from pathlib import Path
from typing import Any

import kfp.dsl
import pytest

import components
from isr_dpo import steps

NAMES = sorted(p.stem for p in Path(components.__path__[0]).glob("[a-z]*.py"))
STEPS = {name: name for name in NAMES} | {"train_launch": "train"}
"""The step of each component; train on several nodes is the same step, in another place."""


def component(name: str) -> Any:
    return getattr(importlib.import_module(f"components.{name}"), name)


def function(name: str) -> ast.FunctionDef:
    tree = ast.parse(textwrap.dedent(inspect.getsource(component(name).python_func)))
    (definition,) = tree.body
    assert isinstance(definition, ast.FunctionDef)
    return definition


def shipped(name: str) -> str:
    """The module that a pod executes, as it stands in the component's command."""
    command = component(name).component_spec.implementation.container.command
    return next(part for part in command if f"def {name}(" in part)


def test_there_is_a_component_for_every_step() -> None:
    assert set(NAMES) == {*steps.STEPS, "train_launch"}


@pytest.mark.parametrize("name", NAMES)
def test_a_wrapper_is_a_docstring_one_import_and_one_call(name: str) -> None:
    docstring, the_import, the_call = function(name).body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(docstring.value, ast.Constant)
    assert ast.unparse(the_import) == "from isr_dpo import steps"
    assert isinstance(the_call, ast.Expr)
    assert isinstance(the_call.value, ast.Call)
    assert ast.unparse(the_call.value.func) == "steps.execute"
    assert ast.literal_eval(the_call.value.args[0]) == STEPS[name]
    assert sum(isinstance(node, ast.Call) for node in ast.walk(the_call)) == 1


@pytest.mark.parametrize("name", NAMES)
def test_shipped_source_stands_alone(name: str) -> None:
    namespace: dict[str, Any] = {}
    exec(shipped(name), namespace)  # annotations and defaults are evaluated here, as in a pod
    instructions = dis.get_instructions(namespace[name])
    names = {i.argval for i in instructions if i.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF")}
    assert names - set(dir(builtins)) == set()


@pytest.mark.parametrize("name", NAMES)
def test_a_wrapper_calls_execute_as_it_is_defined(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    signature = inspect.signature(steps.execute)
    calls: list[inspect.BoundArguments] = []
    monkeypatch.setattr(steps, "execute", lambda *args, **kwargs: calls.append(signature.bind(*args, **kwargs)))
    parameters = inspect.signature(component(name).python_func).parameters
    given: dict[str, Any] = {key: object() for key in parameters}
    component(name).python_func(**given)
    (call,) = calls
    passed = [*call.args[:-3], *call.args[-3].values(), *call.args[-2:], *call.kwargs.values()]
    assert [value for value in given.values() if not any(value is p for p in passed)] == []
    assert all(given[key] is artifact for key, artifact in call.args[-3].items())


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_installed_when_a_pod_starts(name: str) -> None:
    command = " ".join(component(name).component_spec.implementation.container.command)
    assert "pip install" not in command
    assert "venv" not in command


def test_every_step_emits_metrics_and_one_typed_artifact() -> None:
    for name in NAMES:
        types = [output.type for output in component(name).component_spec.outputs.values()]
        assert len(types) == 2
        assert kfp.dsl.Metrics.schema_title in "".join(types)


def test_the_reports_page_is_shown_by_kfp_as_html() -> None:
    assert kfp.dsl.HTML.schema_title in component("report").component_spec.outputs["page"].type
