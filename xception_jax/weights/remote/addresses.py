"""Files at an address, each with its hash; among them the weights of `keras.applications`."""

import os
import re
import urllib.parse
from pathlib import Path

from xception_jax.errors import RunError, UsageError, nearest
from xception_jax.utils.text import printable
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
            f"{printable(name, 200)}: an address needs the SHA-256 of its file: URL#sha256=HASH; "
            f"sha256sum FILE prints it"
        )
    path = _fetched(name, url, "sha256", match[1].lower())
    return Download(path, {"name": name, "url": url, "sha256": match[1].lower()})


def _fetched(name: str, url: str, kind: str, expected: str) -> Path:
    """The file of an address, from the cache or the network; its hash is the expected one."""
    base = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    if not base:
        raise UsageError(f"{printable(name, 200)} names no file")
    path = downloads.folder() / expected / base
    part = path.with_name(f"{base}.part")
    with downloads.one_line(name, url), downloads.locked(path):
        if path.exists() and downloads.digest(path, kind) == expected:
            return path
        resumed = part.exists()
        _fetch(url, part)
        found = downloads.digest(part, kind)
        if found != expected and resumed:  # the file may have changed since its first part came
            part.unlink()
            _fetch(url, part)
            found = downloads.digest(part, kind)
        if found != expected:
            part.unlink()
            raise RunError(
                f"{name}: {url} is not the expected file: its {kind} is {found}, expected is "
                f"{expected}; it is deleted"
            )
        os.replace(part, path)
    return path


def _fetch(url: str, part: Path) -> None:
    """Downloads the rest of a file; what came stays there when the connection breaks."""
    from huggingface_hub.file_download import http_get

    with part.open("ab") as file:
        http_get(url, file, resume_size=file.tell(), displayed_filename=part.stem)
