"""What checks the repository itself: the parts of .ci/run, the version in its places."""

import re
import subprocess
from pathlib import Path

import pytest

import xception_jax
from tests import conftest

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [ROOT / ".ci" / "run", *arguments], capture_output=True, text=True, check=False
    )


def test_parts_are_listed_by_name():
    names = [line.split()[0] for line in run("--list").stdout.splitlines()]
    assert {"lint", "readme", "newest", "wheel", "tpu", "weights"} <= set(names)
    long = [line.split()[0] for line in run("--long", "--list").stdout.splitlines()]
    assert [name for name in long if name in names] == names
    assert len(set(long)) == len(long) > len(names)


@pytest.mark.parametrize("arguments", [["lintt"], ["lint", "lint docs"], ["--fast"], [""]])
def test_an_unknown_part_is_one_line(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout


def test_every_slow_test_is_in_a_part_of_the_long_run():
    """Whole files and folders; single tests are what the short run takes of a file."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in script.splitlines() if re.search(r'\bslow"?\s+tests/', line)]
    assert len(lines) > 10
    wholes = [line for line in lines if " -k " not in line or ' -k "not ($some)"' in line]
    named = {word for line in wholes for word in line.split() if re.match(r"tests/[^:]+$", word)}
    slow = [
        path.relative_to(ROOT)
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if re.search(r"mark\.(slow|long)\b", path.read_text(encoding="utf-8"))
        and path.name != Path(__file__).name
    ]
    assert len(slow) > 30
    assert [str(path) for path in slow if not {str(path), *map(str, path.parents)} & named] == []


def test_the_files_that_the_order_and_the_marker_name_are_there():
    for name in conftest.LONGEST + conftest.ONCE:
        assert (ROOT / "tests" / name).exists(), name


def test_the_workflow_takes_all_default_tests_on_each_python():
    """The short form leaves those with the marker `once` to the oldest."""
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    assert "LONG: ${{ (matrix.part == 'newest' || " in workflow
    assert "- run: .ci/run --long newest\n" in workflow


def test_the_long_form_tests_what_users_have():
    """Programs that LLVM optimized, commands that start by themselves: see `tests/forks.py`."""
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert re.search(r"^ +--long\) .* export .*AS_USERS=yes ;;$", script, re.MULTILINE)


def test_the_version_is_the_same_everywhere():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, date = re.search(r"^## \[([\d.]+)\] - (.+)$", changelog, re.MULTILINE).groups()
    assert version == xception_jax.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert {f"version: {version}", f"date-released: {date}"} <= set(citation)
