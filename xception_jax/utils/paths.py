"""Paths that a user names: on a file system, never a URL."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from xception_jax.errors import UsageError

# Schemes of buckets that TFDS can read with additional packages.
BUCKETS = ("gs", "s3", "az")

# A `Path` of a URL keeps only one slash. Before one slash, a name may also be a drive or a folder,
# `C:/x` or `exp1:/data`, unless it is one of these schemes.
_SCHEMES = (
    "http", "https", "ftp", "ftps", "sftp", "ssh", "file", "gs", "gcs", "s3", "s3a", "s3n", "r2",
    "az", "azure", "abfs", "abfss", "adl", "wasb", "wasbs", "hdfs", "webhdfs", "hf", "oss", "dbfs",
)  # fmt: skip
_URL = re.compile(rf"([a-z][a-z0-9+.-]*)://|({'|'.join(_SCHEMES)}):/", re.IGNORECASE)


# Of names of weights, see `weights.remote`.
_WEIGHTS = ("hf:", "keras:", "https://", "http://")


def is_weights_name(text: str) -> bool:
    """Whether a text names weights to download, and is not a path."""
    return text.startswith(_WEIGHTS)


def local(what: str, path: str | os.PathLike[str], allowed: Iterable[str] = ()) -> Path:
    """The path, with `~` expanded.

    Args:
      what: its name in error messages: `--workdir` or `config.init_from`.
      path: the path that was given.
      allowed: schemes of URLs that are accepted.

    Raises:
      UsageError: it is a URL, which `Path` would treat as the name of a folder, or not a path.
    """
    try:
        return expanded(path, allowed)
    except UsageError as error:
        raise UsageError(f"{what}={os.fspath(path)}: {error}") from None


def expanded(path: str | os.PathLike[str], allowed: Iterable[str] = ()) -> Path:
    """As `local`; the error message does not name the flag or field."""
    text = os.fspath(path)
    if not text or "\0" in text:
        raise UsageError("a path is needed")
    url = _URL.match(text)
    scheme = (url[1] or url[2]).lower() if url else None
    if scheme and scheme not in allowed:
        raise UsageError(f"a URL is not a path here; {_instead(scheme)}")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UsageError("there is no home folder of that user; write the full path") from None


def _instead(scheme: str) -> str:
    if scheme == "file":
        return "write it without file://"
    if scheme in ("http", "https", "ftp"):
        return "download it, and name the copy"
    return "mount the bucket as a folder, or copy its files, and name that folder"
