"""What keeps the house in order: light imports, a sorted surface, floors, documented verbs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import planner
from planner.cli import VERBS, main

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "planner"
HEAVY = {"torch", "ray", "matplotlib", "scipy", "pandas", "optuna", "numpy"}


def modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split()[-1000:])


def test_importing_planner_loads_nothing_heavy():
    assert not HEAVY & modules_after("import planner")


def test_the_list_of_verbs_loads_nothing_heavy():
    shown = "from planner.cli import main; main(['--help'])"
    assert not HEAVY & modules_after(shown)


def test_public_names_are_sorted_and_all_there():
    assert list(planner.__all__) == sorted(planner.__all__)
    for name in planner.__all__:
        assert getattr(planner, name).__module__.startswith("planner")


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'sweeep'"):
        planner.sweeep  # noqa: B018


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb):
    done = subprocess.run(
        [sys.executable, "-m", "planner", verb, "--help"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"planner {verb}" in done.stdout.partition("Example")[2]


def test_every_verb_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    assert [verb for verb in VERBS if f"planner {verb}" not in text] == []


def test_the_floors_hold():
    lint_imports = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [lint_imports, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_no_module_bears_the_name_of_a_public_function():
    functions = {name for name in planner.__all__ if name.islower()}
    modules = {path.stem for path in PACKAGE.iterdir()}
    assert not functions & modules


def test_files_and_functions_stay_small():
    too_long = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text()
        if text.count("\n") > 450:
            too_long.append(f"{path.name}: {text.count(chr(10))} lines")
        too_long += [
            f"{path.name}:{node.name}: {node.end_lineno - node.lineno + 1} lines"
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and (node.end_lineno or 0) - node.lineno >= 60
        ]
    assert too_long == []


def test_every_dependency_names_the_place_that_needs_it():
    lines = (ROOT / "pyproject.toml").read_text().split("\n")
    start = lines.index("dependencies = [")
    end = lines.index("dev = [")
    requirements = [line for line in lines[start:end] if line.startswith('  "')]
    assert requirements
    assert [line for line in requirements if "# planner/" not in line] == []


def test_the_settings_page_is_what_the_program_says(capfd):
    assert main(["list", "--settings"]) == 0
    page = (ROOT / "docs" / "settings.md").read_text()
    assert page.partition("\n## ")[2] == capfd.readouterr().out.partition("\n## ")[2]
