"""Files at an address, each with its hash; among them the weights of `keras.applications`."""

import os
import re
import urllib.parse
from pathlib import Path

from xception_jax.errors import RunError, UsageError, nearest
from xception_jax.utils.text import printable, without_secrets
from xception_jax.weights.remote import downloads
from xception_jax.weights.remote.downloads import Download

_FOLDER = "https://storage.googleapis.com/tensorflow/keras-applications"
# The address and the MD5 of each file, as in keras/src/applications.
KERAS = {
    "keras:xception": (
        f"{_FOLDER}/xception/xception_weights_tf_dim_ordering_tf_kernels.h5",
        "0a58e3b7378bc2990ea3b43d5981f1f6",
    ),
    "keras:inception_v3": (
        f"{_FOLDER}/inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels.h5",
        "9a0d58056eeedaa3f26cb7ebd46da564",
    ),
}


def download_of_keras(name: str) -> Download:
    """The ImageNet weights of `keras.applications`; see `remote.download`."""
    if name not in KERAS:
        raise UsageError(
            f"Keras has no weights {printable(name, 80)}{nearest(name, KERAS)}; there are: "
            f"{', '.join(KERAS)}"
        )
    url, md5 = KERAS[name]
    path = _fetched(name, url, "md5", md5)
    source = {"name": name, "url": url, "sha256": downloads.digest(path, "sha256")}
    return Download(path, source, model=name.removeprefix("keras:"), activation="softmax")


def download(name: str) -> Download:
    """The file of an address; see `remote.download`."""
    url, _, fragment = name.partition("#")
    match = re.fullmatch("sha256=([0-9a-fA-F]{64})", fragment)
    if match is None:
        raise UsageError(
            f"{printable(without_secrets(name), 200)}: an address needs the SHA-256 of its file: "
            f"URL#sha256=HASH; sha256sum FILE prints it"
        )
    digest = match[1].lower()
    shown = without_secrets(url)  # messages and the source are kept in files
    name = f"{shown}#sha256={digest}"
    path = _fetched(name, url, "sha256", digest)
    return Download(path, {"name": name, "url": shown, "sha256": digest})


def _fetched(name: str, url: str, kind: str, expected: str) -> Path:
    """The file of an address, from the cache or the network; its hash is the expected one."""
    path = downloads.folder() / expected / _base(name, url)
    if path.exists() and downloads.digest(path, kind) == expected:
        return path
    part, shown = path.with_name(f"{path.name}.part"), without_secrets(url)
    with downloads.one_line(name, shown), downloads.locked(path):
        for resumed in (True, False) if part.exists() else (False,):
            if not resumed:
                part.unlink(missing_ok=True)
            # What an earlier process left may be complete, or of another file.
            if resumed and downloads.digest(part, kind) == expected:
                break
            try:
                _fetch(url, part)
            except downloads.refusals():
                if not resumed:
                    raise
                continue
            if (found := downloads.digest(part, kind)) == expected:
                break
        else:
            part.unlink()
            raise RunError(
                f"{name}: {shown} is not the expected file: its {kind} is {found}, expected is "
                f"{expected}; it is deleted"
            )
        os.replace(part, path)
    return path


def _base(name: str, url: str) -> str:
    """The name of an address' file.

    Raises:
      UsageError: the address is malformed, names no file, or has a user's name or password.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        parts.port  # noqa: B018  (raises where it is no number)
    except ValueError as error:
        raise UsageError(f"{printable(name, 200)} is no address: {error}") from None
    base = urllib.parse.unquote(parts.path.rpartition("/")[2])
    unfit = re.search(r"[\x00-\x20\x7f]", url) or re.search(r"[/\\\x00-\x1f]", base)
    if not parts.hostname or base in ("", ".", "..") or unfit:
        raise UsageError(f"{printable(name, 200)} is no address of a file")
    if parts.username is not None or parts.password is not None:
        raise UsageError("an address may not contain a user's name or password")
    return base


def _fetch(url: str, part: Path) -> None:
    """Downloads the rest of a file; what came stays there when the connection breaks."""
    from huggingface_hub.file_download import http_get

    with part.open("ab") as file, downloads.quiet():
        http_get(url, file, resume_size=file.tell(), displayed_filename=part.stem)
