"""Text from strangers, on a terminal and in a shell."""

import io
import os
import subprocess
import sys

import pytest

from xception_jax.utils import console, text

HOSTILE = "cat\x1b]0;owned\x07\x9b31m\x7f\r\n\u202efdp\u2066\u2028\udcff"
SHOWN = r"cat\x1b]0;owned\x07\x9b31m\x7f\r\n\u202efdp\u2066\u2028\xff"


def test_control_characters_are_shown_as_escapes():
    assert text.printable(HOSTILE) == SHOWN
    assert text.printable("a\n\tb", keep="\n\t") == "a\n\tb"
    # Letters that join, and marks of scripts that run from right to left, are no controls.
    plain = "na\u00efve \u732b \u05d0\u200f \u0645\u06cc\u200c \U0001f469\u200d\U0001f52c"
    assert text.printable(plain) == plain


def test_a_long_text_is_cut_before_it_grows_by_escapes():
    assert text.printable("abcd", 4) == "abcd"
    assert text.printable("abcde", 4) == "abcd..."
    assert text.printable("\0" * 5, 4) == r"\x00\x00\x00\x00..."


def test_every_control_character_of_unicode_is_shown_as_an_escape():
    hostile = {chr(i) for i in (*range(32), *range(0x7F, 0xA0), *range(0xD800, 0xE000))}
    hostile |= set("\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    changed = {c for c in map(chr, range(sys.maxunicode + 1)) if text.printable(c) != c}
    assert changed == hostile
    assert all(text.printable(c).isascii() and text.printable(c).isprintable() for c in hostile)


def test_a_console_and_its_tables_obey_nobody(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", "300")
    made = console.make_console()
    made.print("first\x1b\nsecond")
    made.print(console.table(HOSTILE, ("", HOSTILE), [(HOSTILE, "1")]))
    shown = out.getvalue()
    assert text.printable(shown, keep="\n") == shown
    assert shown.count(SHOWN) == 3, "the title, the header and the cell"
    assert shown.splitlines()[:2] == [r"first\x1b", "second"]


@pytest.mark.parametrize(
    "word", [HOSTILE[:-1], "plain", "it's \\ mixed\x1b", os.fsdecode(b"\xff\n")]
)
def test_a_shell_reads_back_the_word_that_was_quoted(word):
    line = text.shell_join(["printf", "%s", word])
    assert text.printable(line) == line
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    assert done.stdout == os.fsencode(word)


def test_a_traceback_and_an_error_line_obey_nobody():
    code = (
        "import sys\n"
        "from xception_jax.commands import cli\n"
        "from xception_jax.errors import UsageError\n"
        "def main():\n"
        "    raise (UsageError if sys.argv[0] == 'usage' else KeyError)('a\\x1b[31mb\\u202e')\n"
        "sys.argv = sys.argv[1:]\n"
        "cli.run(sys.modules[__name__])\n"
    )
    for kind, status in (("usage", 2), ("other", 1)):
        done = subprocess.run(
            [sys.executable, "-c", code, kind], capture_output=True, text=True, check=False
        )
        assert done.returncode == status
        assert text.printable(done.stderr, keep="\n") == done.stderr
        assert r"a\x1b[31mb\u202e" in done.stderr
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "2 seconds"), (90, "90 seconds"), (300, "5 minutes"), (3 * 3600, "3 hours"),
     (86400 * 30, "30 days")],
)  # fmt: skip
def test_spans(seconds, said):
    assert text.span(seconds) == said
