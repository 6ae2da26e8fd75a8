"""Weights by name: from the Hugging Face Hub, from Keras' server, or from an address with its hash.

| name | what it means |
|---|---|
| `hf:OWNER/REPO`, `hf:OWNER/REPO@REVISION` | a repository in timm's or Keras' layout |
| `hf:OWNER/REPO/FILE` | one file of a repository |
| `keras:xception`, `keras:inception_v3` | the ImageNet weights of `keras.applications` |
| `https://HOST/FILE#sha256=HASH` | a file that has this SHA-256 |

Files stay in a cache: those of the Hub in the Hub's own (`HF_HOME`), the others in
`~/.cache/xception_jax/weights`. A cached file is used without a network, and each process checks
its hash. `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they mean for the Hub's client.
"""

from pathlib import Path

from xception_jax.weights.remote import addresses, downloads, hub
from xception_jax.weights.remote.downloads import Download

__all__ = ["Download", "download", "pinned"]

# As in `utils.paths.is_weights_name`.
_READERS = {
    "hf:": hub.download,
    "keras:": addresses.download_of_keras,
    "https://": addresses.download,
    "http://": addresses.download,
}
# What this process has downloaded, by name and cache, each with the state of its file.
_found: dict[tuple[str, Path], tuple[Download, tuple[int, ...]]] = {}


def download(name: str) -> Download:
    """Downloads weights, or finds them in the cache.

    In a process, a name stands for the same file, unless the file is changed.

    Args:
      name: one of those above.

    Raises:
      UsageError: the name has another form, or the package `huggingface_hub` is not installed.
      RunError: the weights cannot be had: there is no network, file, permission or disk space, or
        the content does not match its hash. No half-written file is left under its final name.
    """
    key = name, downloads.folder()
    if key in _found and _found[key][1] == _state(_found[key][0].path):
        return _found[key][0]
    found = next(read for scheme, read in _READERS.items() if name.startswith(scheme))(name)
    _found[key] = found, _state(found.path)
    return found


def pinned(name: str) -> str:
    """The name of the same weights at any time: of a repository of the Hub, with its commit.

    Raises:
      UsageError, RunError: see `download`.
    """
    revision = download(name).source.get("revision")
    return f"{name.partition('@')[0]}@{revision}" if revision else name


def _state(path: Path) -> tuple[int, ...]:
    """What changes with a file; empty: there is none."""
    try:
        info = path.stat()
    except OSError:
        return ()
    return info.st_ino, info.st_size, info.st_mtime_ns
