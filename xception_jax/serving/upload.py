"""Uploads an export to the Hugging Face Hub: docs/export.md."""

import re
from dataclasses import dataclass
from pathlib import Path

from xception_jax.errors import RunError, UsageError
from xception_jax.serving.checking import verified_files
from xception_jax.serving.folders import described
from xception_jax.utils.text import printable, shell_join
from xception_jax.weights.remote import downloads


@dataclass(frozen=True)
class Pushed:
    """An export that is on the Hub.

    Attributes:
      url: of the repository.
      commit: has all files of the export.
    """

    url: str
    commit: str


def repository_of(name: str) -> str:
    """The repository that a name means, `USER/NAME` for `hf:USER/NAME`.

    Raises:
      UsageError: the name has another form, or the package `huggingface_hub` is not installed.
    """
    hub = downloads.client()
    match = re.fullmatch(r"hf:([^/@]+/[^/@]+)", name)
    try:
        if match is None:
            raise UsageError(f"--push={printable(name, 200)} is no repository; expected is "
                             f"hf:USER/NAME")  # fmt: skip
        hub.utils.validate_repo_id(match[1])
    except hub.errors.HFValidationError as error:
        raise UsageError(f"--push={printable(name, 200)}: {downloads.reason(error)}") from None
    return match[1]


def push(folder: Path, name: str) -> Pushed:
    """Uploads all files of an export in one commit; the repository is made if it does not exist.

    Args:
      folder: of the export.
      name: of the repository, `hf:USER/NAME`.

    Raises:
      UsageError: there is no export, or see `repository_of`.
      RunError: the export is not complete, or the Hub does not take it. The export stays as it is.
    """
    repository, hub = repository_of(name), downloads.client()
    files = verified_files(folder, described(folder))
    added = [hub.CommitOperationAdd(file, content) for file, content in files.items()]
    url = f"{hub.constants.ENDPOINT}/{repository}"
    try:
        with downloads.quiet():
            api = hub.HfApi(library_name="xception_jax")
            api.create_repo(repository, exist_ok=True)
            made = api.create_commit(
                repository, added, commit_message="Upload an export of xception_jax"
            )
    # ValueError: the Hub does not accept the fields of the card, or a large file. RuntimeError: of
    # a thread that sends a large file, or of hf_xet.
    except (OSError, ValueError, RuntimeError, hub.errors.HTTPError) as error:
        again = ("python", "-m", "xception_jax.export", f"--check={folder}", f"--push={name}")
        raise RunError(
            f"{url}: {_reason(error)}; the export in {folder} is complete, so push it later with "
            f"{shell_join(again)}"
        ) from None
    return Pushed(url, str(made.oid))


def _reason(error: Exception) -> str:
    """Why the Hub does not take an export, in one line."""
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the Hub asks who you are: log in with hf auth login, or set HF_TOKEN"
    said = printable(getattr(error, "server_message", None) or "", 200)
    if status == 403:
        return f"your token may not write there{f' ({said})' if said else ''}"
    if status is None and isinstance(error, (ValueError, RuntimeError)):
        return printable(" ".join(str(error).split()), 300)
    return downloads.reason(error) + (f" ({said})" if said else "")
