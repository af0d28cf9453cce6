"""What the README shows runs as it stands: every command, the example, the study, the file tree."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from planner.study import load_study

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    lines = "\n".join(blocks("sh")).split("\n")
    return [line.partition("#")[0].strip() for line in lines if line.startswith("planner ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty folder that stands for the user's own."""
    return tmp_path_factory.mktemp("place")


def run(arguments: list[str], place: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    return subprocess.run(
        arguments, cwd=place, env=env, capture_output=True, text=True, check=False, timeout=280
    )


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_readme_runs(command, place):
    name, *arguments = shlex.split(command)
    done = run([str(Path(sys.executable).with_name(name)), *arguments], place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_the_python_example_runs_and_names_the_report(place):
    (example,) = blocks("python")
    done = run([sys.executable, "-c", example], place)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip().split("\n")[-1]).is_file()


def test_the_study_that_is_shown_is_the_one_that_is_shipped():
    (shown,) = blocks("yaml")
    assert shown.strip() == (ROOT / "studies" / "quickstart.yaml").read_text().strip()
    assert load_study("quickstart").name == "quickstart"


def test_the_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("sh")), flags=re.MULTILINE)
    assert targets == ["demo", "test"]
    assert [t for t in targets if f"\n{t}:" not in makefile] == []


def test_every_name_of_the_file_tree_exists_and_nothing_is_missing_from_it():
    tree = next(block for block in blocks("text") if block.startswith("planner/"))
    named = set()
    for line in tree.strip().split("\n")[1:]:
        words = line.split("  ")[1 if line.startswith("  ") else 0].split()
        folder = ROOT / "planner" if line.startswith("  ") else ROOT
        for word in words:
            assert (folder / word).exists(), word
            named.add(word.rstrip("/"))
    modules = {p.name for p in (ROOT / "planner").iterdir() if not p.name.startswith("_")}
    assert modules - named - {"py.typed"} == set()


def test_the_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
