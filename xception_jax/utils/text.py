"""Text from outside, made safe to show: names of files and classes, words of other programs."""

import os
import re
import shlex
from collections.abc import Iterable

# What moves the cursor, changes colours or breaks a line (C0, DEL, C1, line and paragraph
# separators), reverses the reading order (the explicit bidirectional controls of Unicode
# Standard Annex 9), or is no character at all (half of a surrogate pair).
_CONTROLS = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object, limit: int | None = None, *, keep: str = "") -> str:
    r"""The text with each control character shown as an escape, `\x1b`.

    Args:
      text: anything; `str` of it is taken.
      limit: characters of the text that are shown; `...` stands for the rest. None: all.
      keep: control characters that stay, such as `"\n"`.
    """
    words = str(text)
    if limit is not None and len(words) > limit:
        words = words[:limit] + "..."
    return _CONTROLS.sub(lambda m: m[0] if m[0] in keep else _escape(m[0]), words)


def as_utf8(text: str) -> str:
    r"""The name of a file with each byte that is no UTF-8 shown as an escape, `\xff`; for JSON."""
    return os.fsencode(text).decode(errors="backslashreplace")


def shell_join(words: Iterable[object]) -> str:
    """A command as one line that a shell reads back as these words; see `quoted`."""
    return " ".join(map(quoted, words))


def quoted(value: object) -> str:
    """A word as a shell reads it back, fit to be shown.

    As `shlex.quote`, but a word with control characters becomes `$'...'` with escapes, which Bash,
    zsh and shells of POSIX 2024 know.
    """
    word = str(value)
    if not _CONTROLS.search(word):
        return shlex.quote(word)
    safe = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{_CONTROLS.sub(lambda m: _as_bytes(m[0]), safe)}'"


def _as_bytes(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(character))


def _escape(character: str) -> str:
    # A byte of a file's name that is no UTF-8 is shown as that byte.
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
