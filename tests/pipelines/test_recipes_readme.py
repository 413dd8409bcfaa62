"""The README's commands are typed by a shell, as they stand, and read by the command lines' own parsers."""

import json
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from isr_dpo import cli
from pipelines import __main__ as pipelines
from pipelines import recipe_files
from tests.pipelines.test_recipes import BASELINES, VARIANTS

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SHOWS = 'shows() { "$PYTHON" -c "import json, sys; print(json.dumps(sys.argv[1:]))" "$@"; }'
OURS = re.compile(r"\.venv/bin/(isr-dpo|python -m pipelines) ")
SECTION = README.partition("## From the published files to a submitted run\n")[2].partition("\n## ")[0]


def typed(text: str) -> list[list[str]]:
    """The words of every command of ours in the indented blocks of `text`, as bash makes them."""
    found = []
    for block in re.findall(r"(?:^    .*\n)+", text, flags=re.MULTILINE):
        if not OURS.search(block):
            continue
        lines = re.sub(r"^    (make|kubectl|\.venv/bin/mlflow) .*\n", "", block, flags=re.MULTILINE)
        script = SHOWS + "\n" + OURS.sub(r"shows \1 ", lines)
        done = subprocess.run(
            ["bash", "-euc", script], env={"PYTHON": sys.executable}, capture_output=True, text=True, check=True
        )
        found += [json.loads(line) for line in done.stdout.splitlines()]
    return found


def read(words: list[str]) -> Any:
    """A command, parsed. Raises SystemExit."""
    if words[0] == "isr-dpo":
        return cli._parser().parse_args(words[1:])
    return pipelines._parser().parse_args(words[3:])


COMMANDS = typed(README)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words)[:60])
def test_every_command_of_the_readme_exists(words: list[str]) -> None:
    if words[-1] == "--help":
        with pytest.raises(SystemExit, match=r"^0$"):
            read(words)
        return
    assert callable(getattr(read(words), "run", None) or read(words).command)


def test_every_packaged_recipe_and_variant_of_the_readme_exists() -> None:
    named = [read(words) for words in COMMANDS if words[0] == "python"]
    packaged = [options for options in named if options.recipe and "." not in options.recipe]
    for options in packaged:
        recipe_files.load(options.recipe, variant=options.variant)
    assert {options.recipe for options in packaged} == {"smoke", "benchmarks", "paper-7b", "baselines"}


def test_five_commands_bring_all_that_the_paper_s_run_reads() -> None:
    commands = [read(words) for words in typed(SECTION.partition("**The systems")[0])]
    test, dev, train, convert, submit = commands
    recipe = recipe_files.load(submit.recipe, variant=submit.variant)
    assert convert.dest == recipe.model.start
    assert {train.dest, test.dest} == {recipe.data.videos}
    brought = [f"{test.rows_to}/{PurePosixPath(uri).name}" for uri in test.rows]
    assert set(brought) == {uri for name, uri in recipe.data.sets.items() if name != "dev"}
    pairs, questions = train.rows
    assert dev.alone
    assert dev.against == [pairs, *brought]
    assert questions == f"{dev.out}/dev.qa.official.jsonl" == recipe.data.sets["dev"]
    assert f"{train.rows_to}/{PurePosixPath(pairs).name}" == recipe.data.train


def test_one_command_evaluates_every_system_and_one_page_shows_them() -> None:
    hound, isr_dpo, *evaluated, report = [read(words) for words in typed(SECTION.partition("**The systems")[2])]
    for made, variant in ((hound, "llava-hound-dpo"), (isr_dpo, "isr-dpo-9")):
        assert made.dest == recipe_files.load("baselines", variant=variant).model.start
    assert [options.variant for options in evaluated] == [v for n, v in VARIANTS if n == "baselines" and v != "served"]
    assert [options.run_uri for options in evaluated] == report.runs[1:]


def test_every_system_of_the_paper_s_tables_has_its_line() -> None:
    rows = dict(re.findall(r"^\| ([\w-]+)(?: \(Table 3\))? \|(.*)\|$", SECTION, flags=re.MULTILINE))
    assert rows.keys() == BASELINES.keys()
    for system, variant in BASELINES.items():
        weights, how = rows[system].rsplit("|", 1)
        assert f"`{variant}`: " in how, system
        assert re.search(r"`[\w-]+/[\w.-]+`", weights), system
        from_files = bool(recipe_files.load("baselines", variant=variant).answer.predictions)
        assert ("prediction files" in how) == from_files, system
