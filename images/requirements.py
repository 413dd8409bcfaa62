"""Prints what extras of the project need, a requirement a line: `python3 requirements.py pyproject.toml train,vllm`.

An image installs these before the project itself, so that a change of our code leaves their layer standing.
"""

import re
import sys
import tomllib
from collections.abc import Iterator


def requirements(project: dict, extras: list[str]) -> Iterator[str]:
    """The project's own requirements and those of `extras`, extras that name other extras resolved."""
    yield from project["dependencies"]
    for extra in extras:
        for requirement in project["optional-dependencies"][extra]:
            inner = re.fullmatch(rf"{project['name']}\[([a-z,-]+)\]", requirement)
            yield from requirements(project, inner[1].split(",")) if inner else [requirement]


if __name__ == "__main__":
    with open(sys.argv[1], "rb") as file:
        tree = tomllib.load(file)
    print("\n".join(dict.fromkeys(requirements(tree["project"], sys.argv[2].split(",")))))
