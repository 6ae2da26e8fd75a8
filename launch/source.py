"""The checkout as one archive: committed, changed and new files, except those that git ignores.

So a run on rented machines uses the current code, which the name of its archive identifies.
"""

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from xception_jax.errors import UsageError
from xception_jax.runtime import cache

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Checkout:
    """The code of a run.

    Attributes:
      archive: path of its archive after `write`; named after `digest`.
      digest: digest of names and contents: the same for the same files.
      commit: the commit that it is based on.
      changed: number of files that differ from the commit or are new.
      packed: the files, as uncompressed tar.
    """

    archive: Path
    digest: str
    commit: str
    changed: int
    packed: bytes

    def write(self) -> None:
        """Writes the archive completely or not at all; the same digest means the same archive."""
        cache.make_private(self.archive.parent)  # the machines run the code in it
        if self.archive.exists():
            return
        draft = self.archive.with_name(f"{self.archive.name}.{os.getpid()}")
        draft.write_bytes(gzip.compress(self.packed, compresslevel=6, mtime=0))
        os.replace(draft, self.archive)

    def __str__(self) -> str:
        changes = f" and {self.changed} files that differ from it" if self.changed else ""
        return f"code {self.digest}: commit {self.commit}{changes}"


def pack(root: Path = ROOT) -> Checkout:
    """Packs a checkout; writes nothing.

    Raises:
      UsageError: it is not a git checkout.
    """
    names = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(set(names)):
            path = root / name
            if name and path.is_file():  # git also lists files deleted without a commit
                data = path.read_bytes()
                info = tarfile.TarInfo(name)
                info.size, info.mode = len(data), 0o755 if os.access(path, os.X_OK) else 0o644
                tar.addfile(info, io.BytesIO(data))
    digest = hashlib.sha256(packed.getvalue()).hexdigest()[:12]
    return Checkout(
        archive=cache.folder() / "launch" / f"xception_jax-{digest}.tar.gz",
        digest=digest,
        commit=_git(root, "rev-parse", "--short", "HEAD").strip(),
        changed=len(_git(root, "status", "--porcelain").splitlines()),
        packed=packed.getvalue(),
    )


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            check=True,
            encoding="utf-8",
        )
    except FileNotFoundError:
        raise UsageError("there is no git on the PATH; install it") from None
    except subprocess.CalledProcessError as error:
        raise UsageError(
            f"{root} is not a git checkout with a commit: {error.stderr.strip()}; launchers run "
            f"from a clone"
        ) from None
    return done.stdout
