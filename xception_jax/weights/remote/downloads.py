"""What downloads share: where they are kept, their hashes, one line for each error."""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xception_jax.errors import RunError, UsageError
from xception_jax.runtime import cache
from xception_jax.utils.text import printable, without_secrets


@dataclass(frozen=True)
class Download:
    """A file of weights that is on this machine.

    Attributes:
      path: of the file. A `config.json` that belongs to it is in the same folder.
      source: where it is from, for people and for JSON: `name`, `url`, `sha256`, and where known
        `revision` (a commit) and `license`.
      model: the name of the model, if the name of the weights specifies it.
      activation: of the model, if the name of the weights specifies it.
    """

    path: Path
    source: dict[str, str] = field(default_factory=dict)
    model: str | None = None
    activation: str | None = None

    def summary(self) -> str:
        """The source in one line."""
        keys = ("license", "revision", "sha256")
        told = [f"{key} {self.source[key]}" for key in keys if key in self.source]
        return f"{self.source['name']}: {', '.join(told)}"


def client() -> Any:
    """The package `huggingface_hub`; imported when needed, since that takes half a second.

    Raises:
      UsageError: it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        raise UsageError(
            "the Hub is reached with huggingface_hub: pip install 'xception_jax[hub]'"
        ) from None
    return huggingface_hub


def folder() -> Path:
    """Where files that are not in the Hub's own cache are kept."""
    return cache.folder() / "weights"


def digest(path: Path, kind: str) -> str:
    """The hash of a file in hexadecimal, by a name that `hashlib` knows."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def matches_its_name(path: Path) -> bool:
    """Whether a file of the Hub's cache has the hash that it is named after.

    The cache names large files after their SHA-256, and others after the SHA-1 that git gives them.
    On a file system without links files have plain names, which say nothing.
    """
    if re.fullmatch("[0-9a-f]{64}", path.name):
        return digest(path, "sha256") == path.name
    if re.fullmatch("[0-9a-f]{40}", path.name):
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == path.name
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time makes the file of this path; its folder is made too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the client's log of each attempt: the error that remains is told in one line."""
    # Not through the logger of this name: the import of the client's own would set its level again.
    logging = client().utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def refusals() -> tuple[type[Exception], ...]:
    """The errors by which a server refuses a request, as one for a range that is not there."""
    return (client().errors.HfHubHTTPError,)


@contextlib.contextmanager
def one_line(name: str, what: str) -> Iterator[None]:
    """Makes a `RunError` of one line of the errors of networks, servers and disks.

    Args:
      name: of the weights, as the user wrote it.
      what: the error is about: an address or a file of it.
    """
    try:
        yield
    except (OSError, client().errors.HTTPError) as error:
        raise RunError(f"{name}: {what}: {reason(error)}") from None


def reason(error: BaseException) -> str:
    """Why something failed, in one line."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{os.strerror(errno.ENOSPC)}; HF_HOME and XDG_CACHE_HOME name folders for caches"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"the server answers {status}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return printable(without_secrets(lines[0]), 200)
