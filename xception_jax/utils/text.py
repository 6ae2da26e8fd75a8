"""Makes untrusted text safe to print: names of files and classes, output of other programs."""

import os
import re
import shlex
from collections.abc import Iterable

# Characters that move the cursor, change colours or break a line (C0, DEL, C1, line and paragraph
# separators). Those that reverse the reading order (the explicit bidirectional controls of Unicode
# Standard Annex 9). Halves of surrogate pairs, which are not characters.
_CONTROLS = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# The parts of an address that may be secrets: what is before its host, and its query.
_SECRETS = re.compile(r"(https?://)(?:[^/?#\s]*@)?([^?#\s]*)(?:\?[^#\s]*)?", re.IGNORECASE)


def printable(text: object, limit: int | None = None, *, keep: str = "") -> str:
    r"""The text with each control character shown as an escape, `\x1b`.

    Args:
      text: any value; `str` of it is used.
      limit: number of characters to show; `...` replaces the rest. None: all.
      keep: control characters to keep, such as `"\n"`.
    """
    words = str(text)
    if limit is not None and len(words) > limit:
        words = words[:limit] + "..."
    return _CONTROLS.sub(lambda m: m[0] if m[0] in keep else _escape(m[0]), words)


def without_secrets(text: str) -> str:
    """The text without user names, passwords and queries of `http(s)` addresses in it."""
    return _SECRETS.sub(r"\1\2", text)


def as_utf8(text: str) -> str:
    r"""The name of a file with each byte that is not UTF-8 as an escape, `\xff`; for JSON."""
    return os.fsencode(text).decode(errors="backslashreplace")


def shell_join(words: Iterable[object]) -> str:
    """A command as one line that a shell parses into these words; see `quoted`."""
    return " ".join(map(quoted, words))


def span(seconds: float) -> str:
    """A duration in words: 40 seconds, 5 minutes, 30 hours, 12 days."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{round(seconds / length)} {unit}"
    return f"{max(2, round(seconds))} seconds"


def quoted(value: object) -> str:
    """A word quoted for a shell and safe to print.

    As `shlex.quote`, but a word with control characters becomes `$'...'` with escapes, which Bash,
    zsh and POSIX 2024 shells support.
    """
    word = str(value)
    if not _CONTROLS.search(word):
        return shlex.quote(word)
    safe = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{_CONTROLS.sub(lambda m: _as_bytes(m[0]), safe)}'"


def _as_bytes(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(character))


def _escape(character: str) -> str:
    # A byte of a file name that is not UTF-8.
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
