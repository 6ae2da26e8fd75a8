"""Repositories of the Hugging Face Hub, in timm's layout or in Keras'."""

import contextlib
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from xception_jax.errors import RunError, UsageError
from xception_jax.utils.text import printable, without_secrets
from xception_jax.weights.remote import downloads
from xception_jax.weights.remote.downloads import Download

_NAME = re.compile(
    r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[\w./-]+))?(?:@(?P<revision>[\w./-]+))?", re.ASCII
)
# The files of weights, the preferred one first.
_TIMM = ("model.safetensors", "pytorch_model.bin")
# A `.keras` file that is not packed, as `keras.Model.save("hf://OWNER/REPO")` writes it.
_KERAS = ("config.json", "metadata.json", "model.weights.h5")
_CHUNK = 1 << 20  # bytes


def download(name: str) -> Download:
    """The weights of a repository; see `remote.download`."""
    match = _NAME.fullmatch(name)
    if match is None or {"", ".", ".."} & set(re.split("[/@:]", name)):
        raise UsageError(
            f"{printable(name, 200)} names no weights; expected is hf:OWNER/REPO or "
            f"hf:OWNER/REPO/FILE, with @REVISION if wanted"
        )
    repository = _Repository(name, match["repo"], match["revision"])
    with downloads.one_line(name, "the cache"):
        if file := match["file"]:
            # timm's description is read with the weights, in whatever order they were downloaded.
            repository.file(f"{file.rpartition('/')[0]}/config.json".lstrip("/"))
            path = repository.required(file)
        else:
            path = _weights_of(repository)
        source = {"name": name, **repository.source()}
        return Download(path, source | {"sha256": downloads.digest(path, "sha256")})


def _weights_of(repository: "_Repository") -> Path:
    """The weights of a repository, in the layout that it has."""
    found = {_KERAS[0]: repository.file(_KERAS[0])}
    for file in _TIMM:
        if (path := repository.file(file)) is not None:
            return path
    found |= {file: repository.file(file) for file in _KERAS[1:]}
    members = {file: path for file, path in found.items() if path is not None}
    if len(members) == len(_KERAS):
        return _packed(members, repository)
    raise repository.lacks(
        f"neither timm's layout ({' or '.join(_TIMM)}) nor Keras' ({', '.join(_KERAS)}); "
        f"hf:{repository.repo}/FILE names one of its files"
    )


class _Repository:
    """A repository of the Hub at one commit, whose files are in the cache once they are read.

    Args:
      name: as the user wrote it, for messages.
      repo: `OWNER/REPO`.
      revision: a branch, tag or commit; None: the default branch.
    """

    def __init__(self, name: str, repo: str, revision: str | None):
        self.name, self.repo, self.revision = name, repo, revision
        self._hub = downloads.client()
        self.url = f"{without_secrets(self._hub.constants.ENDPOINT)}/{repo}"  # to be shown
        self._offline = ""  # why the Hub cannot be reached

    def file(self, name: str) -> Path | None:
        """The path of a file, or None where the repository, or offline the cache, has none.

        Raises:
          RunError: it cannot be had, or its content is not what the repository says.
        """
        path = self._download(name)
        if path is not None and not downloads.matches_its_name(path.resolve()):
            path = self._download(name, again=True)
            if path is not None and not downloads.matches_its_name(path.resolve()):
                path.resolve().unlink()
                path.unlink()
                raise RunError(
                    f"{self.name}: {name} is damaged: its hash is not the one that {self.url} "
                    f"states; it was downloaded again, with the same result, and is deleted"
                )
        if path is not None:  # from now on all files are of this commit, wherever a branch moves
            self.revision = path.parents[name.count("/")].name
        return path

    def required(self, name: str) -> Path:
        """The path of a file; `RunError` where there is none."""
        if (path := self.file(name)) is None:
            raise self.lacks(f"no file {name}")
        return path

    def lacks(self, what: str) -> RunError:
        """The error of a repository that does not have something."""
        if self._offline:
            cache = self._hub.constants.HF_HUB_CACHE
            return RunError(
                f"{self.name}: {self.url} cannot be reached ({self._offline}), and the cache "
                f"{cache} does not have the weights"
            )
        return RunError(f"{self.name}: {self.url} has {what}")

    def source(self) -> dict[str, str]:
        """`url`, `revision` and, where the repository's README.md states it, `license`."""
        stated: Any = None
        with contextlib.suppress(Exception):  # weights without a model card are weights too
            if (card := self.file("README.md")) is not None:
                stated = (self._hub.metadata_load(card) or {}).get("license")
        told = {"url": self.url, "revision": self.revision, "license": stated}
        return {key: printable(str(value), 200) for key, value in told.items() if value}

    def _download(self, name: str, again: bool = False) -> Path | None:
        """The path of a file in the cache, or None where there is none.

        Args:
          name: of the file.
          again: it is in the cache, and damaged.
        """
        hub, errors = self._hub, self._hub.errors
        options = {"local_files_only": bool(self._offline and not again), "force_download": again}
        try:
            with downloads.quiet():
                return Path(hub.hf_hub_download(self.repo, name, revision=self.revision, **options))
        except errors.GatedRepoError:
            why = (
                f"{self.url} is gated: accept its terms there, then log in with hf auth login or "
                f"set HF_TOKEN"
            )
        except errors.RepositoryNotFoundError:
            why = f"there is no {self.url}, or it is private and HF_TOKEN has no access to it"
        except errors.RevisionNotFoundError:
            why = f"{self.url} has no revision {self.revision}"
        except errors.LocalEntryNotFoundError as error:
            self._offline = self._offline or downloads.reason(error.__cause__ or error)
            return None
        except errors.EntryNotFoundError:
            return None
        except errors.HFValidationError as error:
            raise UsageError(f"{self.name}: {downloads.reason(error)}") from None
        except ValueError:  # of a download that is forced, and has no network
            why = (
                f"{name} is damaged: its hash is not the one that {self.url} stated; it cannot be "
                f"downloaded again without a network"
            )
        except (OSError, errors.HTTPError) as error:
            why = f"{name} of {self.url}: {downloads.reason(error)}"
        raise RunError(f"{self.name}: {why}") from None


def _packed(members: Mapping[str, Path], repository: _Repository) -> Path:
    """A `.keras` file of its members, as Keras packs it."""
    name = f"{repository.repo.replace('/', '--')}-{repository.revision}.keras"
    path = downloads.folder() / name
    if _holds(path, members):
        return path
    with downloads.locked(path):
        part = path.with_name(f"{name}.part")
        with zipfile.ZipFile(part, "w") as archive:
            for member, source in members.items():
                # A fixed date: the same content has the same hash.
                entry = zipfile.ZipInfo(member)
                with (
                    archive.open(entry, "w", force_zip64=True) as target,
                    source.open("rb") as file,
                ):
                    shutil.copyfileobj(file, target)
        os.replace(part, path)
    return path


def _holds(path: Path, members: Mapping[str, Path]) -> bool:
    """Whether a packed file exists and has these members byte by byte. Their hashes are checked."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.namelist() != [*members]:
                return False
            for member, source in members.items():
                with archive.open(member) as packed, source.open("rb") as file:
                    chunks = iter(partial(file.read, _CHUNK), b"")
                    same = all(packed.read(len(chunk)) == chunk for chunk in chunks)
                    if not same or packed.read(1):
                        return False
    except Exception:  # whatever the damage is, the file is made again
        return False
    return True
