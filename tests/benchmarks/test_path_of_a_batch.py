"""How many functions and files a reader meets who follows one batch."""

import re

import pytest

from benchmarks import path_of_a_batch
from tests.benchmarks.test_step import run
from xception_jax.data.render import turbojpeg

# The most functions and changes of file.
LIMITS = {"host": (30, 10), "step": (80, 25)}


@pytest.mark.skipif(turbojpeg.library() is None, reason="needs libturbojpeg 3")
def test_a_reader_follows_a_batch_through_few_functions_and_files():
    done = run("path_of_a_batch", "--list")
    assert done.returncode == 0, done.stderr
    lists = dict(zip(LIMITS, done.stdout.split("\n\n"), strict=False))
    for part, (most_functions, most_changes) in LIMITS.items():
        [row] = re.findall(rf"^{part} +(\d+) +\d+ +(\d+)$", done.stdout, re.MULTILINE)
        functions, changes = map(int, row)
        assert 0 < functions <= most_functions, lists[part]
        assert 0 < changes <= most_changes, lists[part]
        assert len(re.findall(r"^ +\d+  ", lists[part], re.MULTILINE)) == functions
        assert len(re.findall(r"^  \w", lists[part], re.MULTILINE)) == changes


def test_a_change_of_file_is_another_file_than_before():
    functions = [("a.py", "f"), ("a.py", "g"), ("b.py", "h"), ("a.py", "i")]
    assert path_of_a_batch.counts(functions) == (4, 2, 3)
    assert path_of_a_batch.counts([]) == (0, 0, 0)
