"""Weights by name: from the Hugging Face Hub, from Keras' server, or from an address with its hash.

| name | what it means |
|---|---|
| `hf:OWNER/REPO`, `hf:OWNER/REPO@REVISION` | a repository in timm's or Keras' layout |
| `hf:OWNER/REPO/FILE` | one file of a repository |
| `keras:xception`, `keras:inception_v3` | the ImageNet weights of `keras.applications` |
| `https://HOST/FILE#sha256=HASH` | a file that has this SHA-256 |

Files stay in a cache: those of the Hub in the Hub's own (`HF_HOME`), the others in
`~/.cache/xception_jax/weights`. A cached file is used without a network, and its hash is checked
each time. `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they mean for the Hub's client.
"""

from xception_jax.weights.remote import addresses, hub
from xception_jax.weights.remote.downloads import Download

__all__ = ["Download", "download"]

# As in `utils.paths.is_weights_name`.
_READERS = {
    "hf:": hub.download,
    "keras:": addresses.download_of_keras,
    "https://": addresses.download,
    "http://": addresses.download,
}


def download(name: str) -> Download:
    """Downloads weights, or finds them in the cache.

    Args:
      name: one of those above.

    Raises:
      UsageError: the name has another form, or the package `huggingface_hub` is not installed.
      RunError: the weights cannot be had: there is no network, file, permission or disk space, or
        the content does not match its hash. No half-written file is left under its final name.
    """
    return next(read for scheme, read in _READERS.items() if name.startswith(scheme))(name)
