"""Preparation of a TFDS data set as array_record, by its own unmodified builder."""

if __name__ == "__main__":  # first, so that --help and a misspelt flag do not wait for JAX
    from xception_jax import commands

    commands.run("prepare")

import contextlib
import fcntl
import gzip
import io
import lzma
import os
import re
import shutil
import signal
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from xception_jax.data.readers.needs import Needs, refuse_bucket
from xception_jax.errors import RunError, UsageError
from xception_jax.utils.console import make_console


@dataclass(frozen=True)
class PreparedDataset:
    """A prepared data set of TFDS.

    Attributes:
      dataset: its name, config and version.
      path: its folder.
      file_format: `array_record` or `tfrecord`.
      splits: the number of examples by the name of the split.
      bytes: the size of its files.
      prepared: whether this call prepared it; False: it already existed.
    """

    dataset: str
    path: Path
    file_format: str
    splits: Mapping[str, int]
    bytes: int
    prepared: bool

    def to_json(self) -> dict[str, object]:
        """The output of `--json`."""
        return {**asdict(self), "path": str(self.path)}


def prepare(
    dataset: str,
    *,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    beam_options: Sequence[str] = (),
    check_disk: bool = True,
    check_archives: bool = True,
    console: Console | None = None,
) -> PreparedDataset:
    """Prepares a data set, unless it is prepared.

    Args:
      dataset: a TFDS name: `NAME`, `NAME/CONFIG` or `NAME:VERSION`.
      data_dir: folder of TFDS' data; None: TFDS' default.
      manual_dir: folder of files that TFDS cannot download; None: `DATA_DIR/downloads/manual`.
      beam_options: Apache Beam's pipeline options, `NAME=VALUE`.
      check_disk: refuse to start if the disk seems too small.
      check_archives: refuse archives of another size than TFDS knows, and too small splits.
      console: console for progress; by default standard output.

    Raises:
      UsageError: preparation cannot succeed.
      RunError: it failed or was interrupted. No data set is left that could be opened.
    """
    from tensorflow_datasets.core import constants

    from xception_jax.data.readers import tfds as tfds_reader

    console = console or make_console()
    refuse_bucket("data_dir", data_dir or constants.DATA_DIR)
    refuse_bucket("manual_dir", manual_dir or "")
    builder = tfds_reader.find_builder(dataset, os.path.expanduser(data_dir) if data_dir else None)
    prepared = bool(builder.info.splits)
    if prepared:
        console.print(f"{builder.info.full_name} is prepared already, in {builder.data_dir}")
    else:
        default = Path(builder._data_dir_root) / "downloads" / "manual"
        needs = Needs.of(builder, Path(manual_dir).expanduser() if manual_dir else default)
        options = _pipeline_options(beam_options)
        console.print(needs.describe(builder))
        needs.check(builder, check_disk, check_archives)
        _build(builder, needs.manual, options)
        if check_archives:
            _check_complete(builder, tfds_reader.PUBLISHED.get(builder.name, {}))
        console.print(f"prepared in {builder.data_dir}")
    info = builder.info
    return PreparedDataset(
        dataset=info.full_name,
        path=Path(builder.data_dir),
        file_format=info.file_format.value,
        splits={name: split.num_examples for name, split in info.splits.items()},
        bytes=int(info.dataset_size),
        prepared=not prepared,
    )


def _check_complete(builder: Any, published: Mapping[str, int]) -> None:
    """Raises `RunError` if splits are too small, and removes them.

    A tar with a damaged file header looks like one that ends there.
    """
    found = {name: split.num_examples for name, split in builder.info.splits.items()}
    few = ", ".join(
        f"{found.get(name, 0):,} of {count:,} in {name}"
        for name, count in published.items()
        if found.get(name, 0) < count
    )
    if few:
        shutil.rmtree(builder.data_dir)
        raise RunError(
            f"{builder.info.full_name} has only {few} and was removed: an archive is incomplete. "
            f"Download it again, or keep an incomplete data set with --nocheck_archives"
        )


def _pipeline_options(options: Sequence[str]) -> Any:
    """Apache Beam's options; None if none are given."""
    if not options:
        return None
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UsageError(
            "--beam_options needs Apache Beam: pip install 'xception_jax[beam]'"
        ) from None
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):  # argparse prints errors there
            parsed = PipelineOptions(flags=[f"--{option}" for option in options])
            parsed.get_all_options()
    except SystemExit:
        reason = complaint.getvalue().strip().splitlines()[-1].split("error: ")[-1]
        raise UsageError(f"--beam_options: {reason}") from None
    return parsed


def _build(builder: Any, manual: Path, options: Any) -> None:
    """Runs the builder; if it fails, no data set is left that could be opened."""
    import tensorflow_datasets as tfds

    config = tfds.download.DownloadConfig(
        manual_dir=manual if manual.is_dir() else None,
        beam_options=options,
        try_download_gcs=False,  # the data there is tfrecord
    )
    with (
        _alone(Path(builder.data_dir)),
        _interruptible(),
        _known_errors(builder),
        _damaged_archives(builder, manual),
        contextlib.redirect_stdout(io.StringIO()),  # TFDS prints its progress
    ):
        builder.download_and_prepare(download_config=config, file_format="array_record")


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Locks out other processes that prepare the same, and removes files of killed ones."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".prepare_{target.name}.lock").open("w", encoding="utf-8") as lock:
        try:
            # The system releases the lock when the process ends, also when it is killed.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process is preparing {target}") from None
        for stale in target.parent.glob(f"incomplete.*_{target.name}"):
            shutil.rmtree(stale)
        yield


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Makes SIGTERM end the builder as Ctrl-C does: TFDS then removes its unfinished files."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _known_errors(builder: Any) -> Iterator[None]:
    """Turns the known errors of a builder into one line."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import download_manager, extractor, util

    name = builder.info.full_name
    try:
        yield
    except KeyboardInterrupt:
        raise RunError(
            "interrupted; nothing half-written is left, and the same command starts again"
        ) from None
    except ImportError as error:
        # TFDS wraps some errors; only the message contains the name.
        found = re.search(r"No module named '(\w+)", str(error))
        if not found:
            raise
        extras = {"tensorflow": "xception_jax[prepare]", "apache_beam": "xception_jax[beam]"}
        package = extras.get(found[1], found[1])
        raise UsageError(
            f"{name} needs {found[1]} to be prepared: pip install '{package}'"
        ) from None
    except (
        OSError,
        AssertionError,
        util.DownloadError,
        download_manager.NonMatchingChecksumError,
        extractor.ExtractError,
        extractor.UnsafeArchiveError,
        tfds.core.utils.DatasetVariantBlockedError,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RunError(f"{name} cannot be prepared: {reason}") from None


@contextlib.contextmanager
def _damaged_archives(builder: Any, manual: Path) -> Iterator[None]:
    """Turns the errors for a truncated or damaged archive into one line."""
    try:
        yield
    except Exception as error:
        kinds: tuple[type[Exception], ...] = (
            EOFError, gzip.BadGzipFile, lzma.LZMAError, tarfile.ReadError, zipfile.BadZipFile,
            zlib.error,
        )  # fmt: skip
        if "tensorflow" in sys.modules:  # at the end, its files raise where others return no bytes
            kinds += (sys.modules["tensorflow"].errors.OutOfRangeError,)
        # TFDS wraps some errors in another type.
        damage: BaseException | None = error
        while damage and not isinstance(damage, kinds):
            damage = damage.__cause__
        if not damage:
            raise
        reason = " ".join(f"{type(damage).__name__}: {damage}".split())
        raise RunError(
            f"{builder.info.full_name} cannot be prepared: an archive in {manual} or "
            f"{builder._data_dir_root}/downloads is damaged; download it again ({reason})"
        ) from None
