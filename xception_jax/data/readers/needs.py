"""Requirements of a TFDS builder: downloads, manually provided archives, disk space."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from xception_jax.errors import UsageError

# File names in a builder's instructions for the manual folder.
_FILE_NAME = re.compile(r"[\w.-]+\.(?:tar(?:\.gz|\.bz2)?|tgz|zip|gz|7z|rar|csv|mat|json|txt)\b")


@dataclass(frozen=True)
class Needs:
    """Requirements of a builder, as far as TFDS knows them.

    Attributes:
      manual: the folder for manually provided files.
      by_hand: the files for it that the builder's instructions name.
      sizes: bytes of the files that TFDS knows, 0 if it does not know the size. TFDS opens these
        archives; others may have to be unpacked first.
      urls: the downloads.
      download: bytes that are still to download.
      disk: bytes needed on the disk, including downloads. TFDS' figure for the prepared data, else
        the size of the archives, since images are stored unchanged.
      free: free bytes on the disk.
    """

    manual: Path
    by_hand: tuple[str, ...]
    sizes: dict[str, int]
    urls: tuple[str, ...]
    download: int
    disk: int
    free: int

    @classmethod
    def of(cls, builder: Any, manual: Path) -> "Needs":
        """Collects the requirements from a builder, the manual folder and the disk."""
        root = Path(builder._data_dir_root)
        sizes = {url: int(info.size or 0) for url, info in (builder.url_infos or {}).items()}
        named = _FILE_NAME.findall(builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "")
        by_hand = tuple(dict.fromkeys(named))
        urls = tuple(url for url in sizes if url.rsplit("/", 1)[-1] not in by_hand)
        known = {url.rsplit("/", 1)[-1]: size for url, size in sizes.items()}
        there = [manual / name for name in by_hand if (manual / name).is_file()]
        archives = sum(sizes[url] for url in urls) + sum(path.stat().st_size for path in there)
        done = (root / "downloads" / builder.name).rglob("*")
        left = sum(sizes[url] for url in urls) - sum(p.stat().st_size for p in done if p.is_file())
        return cls(
            manual=manual,
            by_hand=by_hand,
            sizes={name: known[name] for name in by_hand if name in known},
            urls=urls,
            download=max(left, 0),
            disk=max(left, 0) + int(builder.info.dataset_size or archives),
            free=shutil.disk_usage(_existing(root)).free,
        )

    def describe(self, builder: Any) -> str:
        """The requirements as lines of text."""
        from tensorflow_datasets.core.units import Size

        lines = [f"{builder.info.full_name} will be written to {builder.data_dir}"]
        if self.urls:
            hosts = ", ".join(sorted({urlsplit(url).netloc for url in self.urls}))
            size = f"up to {Size(self.download)}" if self.download else "nothing more"
            lines.append(f"downloads: {size}, of {len(self.urls)} files from {hosts}")
        if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            lines.append(f"manually, in {self.manual}: {_instructions(builder)}")
        takes = f"about {Size(self.disk)}" if self.disk else "unknown to TFDS"
        lines.append(f"disk: {takes}; free: {Size(self.free)}")
        return "\n  ".join(lines)

    def check(self, builder: Any, check_disk: bool, check_archives: bool) -> None:
        """Raises `UsageError` if the builder cannot succeed."""
        from tensorflow_datasets.core.units import Size

        target, root = Path(builder.data_dir), Path(builder._data_dir_root)
        if target.exists():
            raise UsageError(
                f"{target} is there and holds no dataset_info.json, so TFDS neither reads nor "
                f"replaces it; move it away"
            )
        parent = _existing(target)
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK, effective_ids=True):
            raise UsageError(f"{parent} cannot be written to; name another --data_dir")
        missing = [name for name in self.sizes if not (self.manual / name).is_file()]
        empty = not self.manual.is_dir() or not any(self.manual.iterdir())
        if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and (missing or empty):
            lacks = f"has no {' and no '.join(missing)}" if missing else "is empty or not there"
            raise UsageError(
                f"{self.manual} {lacks}; name the folder with --manual_dir. TFDS says: "
                f"{_instructions(builder)}"
            )
        # TFDS does not check sizes, and a tar that ends between two of its files looks complete.
        sizes = {self.manual / name: size for name, size in self.sizes.items() if size}
        wrong = [
            f"{path} has {path.stat().st_size:,} bytes instead of {size:,}"
            for path, size in sizes.items()
            if path.stat().st_size != size
        ]
        if check_archives and wrong:
            raise UsageError(
                f"{' and '.join(wrong)}: the archive is incomplete or another version; download it "
                f"again, or skip this check with --nocheck_archives"
            )
        if check_disk and self.disk > self.free:
            raise UsageError(
                f"{root} has {Size(self.free)} free, and {builder.name} takes about "
                f"{Size(self.disk)}; make room, or skip this check with --nocheck_disk"
            )


def refuse_bucket(flag: str, folder: str) -> None:
    """Raises `UsageError` for a bucket: `Path` would take its URL as the name of a folder."""
    if "://" in folder:
        raise UsageError(
            f"{folder} is not on a file system, as preparation needs: mount the bucket as a "
            f"folder, or use a folder on a disk, and name that with --{flag}"
        )


def _instructions(builder: Any) -> str:
    return " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())


def _existing(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
