"""A policy as an MLflow pyfunc: the `MLmodel` file that lies among its files, and what loads it.

`mlflow.pyfunc.load_model("models:/NAME@champion").predict({"video": PATH, "question": TEXT})` gives a list of answers,
one a row; a DataFrame with these columns or a list of such dictionaries does as well.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from isr_dpo.ask import Answerer

NAME = "MLmodel"
_COLUMNS = ("video", "question")


def mlmodel_file() -> bytes:
    """The content of `MLmodel`. Free of dates and random ids, so that equal policies stay equal byte for byte."""
    inputs = [{"type": "string", "name": name, "required": True} for name in _COLUMNS]
    tree = {
        "flavors": {
            "python_function": {
                "loader_module": __name__,
                "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
            }
        },
        "signature": {
            "inputs": json.dumps(inputs),
            "outputs": json.dumps([{"type": "string", "required": True}]),
            "params": None,
        },
    }
    return yaml.safe_dump(tree, sort_keys=True).encode()


class PolicyModel:
    """What MLflow calls."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def predict(self, table: Any, params: Any = None) -> list[str]:
        """An answer for each row of a DataFrame with the columns `video` (a path) and `question`."""
        rows = zip(*(table[name] for name in _COLUMNS), strict=True)
        return [self._answerer.ask(Path(video), question) for video, question in rows]

    @functools.cached_property
    def _answerer(self) -> Answerer:
        from isr_dpo.ask import Answerer  # brings the model classes

        return Answerer(self._folder)


def _load_pyfunc(path: str) -> PolicyModel:
    """MLflow's entry point; `path` is the folder that holds `MLmodel`."""
    return PolicyModel(Path(path))
