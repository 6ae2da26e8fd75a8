"""Preparation of a TFDS data set as array_record, by its own unmodified builder."""

if __name__ == "__main__":  # first: --help and a misspelt flag need not wait for JAX
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
      prepared: True: `prepare` has done it now; False: it was there.
    """

    dataset: str
    path: Path
    file_format: str
    splits: Mapping[str, int]
    bytes: int
    prepared: bool

    def to_json(self) -> dict[str, object]:
        """What `--json` prints."""
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
      dataset: of TFDS: `NAME`, `NAME/CONFIG` or `NAME:VERSION`.
      data_dir: where TFDS keeps its data; None: TFDS' own default.
      manual_dir: folder of what TFDS cannot download; None: `DATA_DIR/downloads/manual`.
      beam_options: Apache Beam's pipeline options, `NAME=VALUE`.
      check_disk: refuse to begin if the disk looks too small.
      check_archives: refuse an archive of another size than TFDS knows, and too small splits.
      console: where progress goes; standard output unless given.

    Raises:
      UsageError: it cannot succeed.
      RunError: it failed or was interrupted. Either way nothing is left that would open.
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
    """Raises `RunError` where splits are too small, and removes them.

    A tar that is damaged where one of its files begins looks like one that ends there.
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
            f"{builder.info.full_name} has come out with {few}, and is removed again: an archive "
            f"is not whole. Fetch it again, or keep what there is with --nocheck_archives"
        )


def _pipeline_options(options: Sequence[str]) -> Any:
    """Apache Beam's options, None where none are given."""
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
        with contextlib.redirect_stderr(complaint):  # argparse tells of a bad value there
            parsed = PipelineOptions(flags=[f"--{option}" for option in options])
            parsed.get_all_options()
    except SystemExit:
        reason = complaint.getvalue().strip().splitlines()[-1].split("error: ")[-1]
        raise UsageError(f"--beam_options: {reason}") from None
    return parsed


def _build(builder: Any, manual: Path, options: Any) -> None:
    """Runs the builder; whatever stops it, nothing is left that would open."""
    import tensorflow_datasets as tfds

    config = tfds.download.DownloadConfig(
        manual_dir=manual if manual.is_dir() else None,
        beam_options=options,
        try_download_gcs=False,  # what lies there is tfrecord
    )
    with (
        _alone(Path(builder.data_dir)),
        _interruptible(),
        _told(builder),
        _damage_told(builder, manual),
        contextlib.redirect_stdout(io.StringIO()),  # TFDS tells of its work in prints
    ):
        builder.download_and_prepare(download_config=config, file_format="array_record")


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Keeps other processes from preparing the same, and removes what killed ones have left."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".prepare_{target.name}.lock").open("w", encoding="utf-8") as lock:
        try:
            # The system drops the lock with the process, however it ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process is preparing {target}") from None
        for stale in target.parent.glob(f"incomplete.*_{target.name}"):
            shutil.rmtree(stale)
        yield


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Lets SIGTERM end the builder as Ctrl-C does: TFDS then removes what it has written."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _told(builder: Any) -> Iterator[None]:
    """Turns what is known to go wrong in a builder into one line."""
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
        # TFDS raises some anew, with the name in the message alone.
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
def _damage_told(builder: Any, manual: Path) -> Iterator[None]:
    """Turns what is raised of an archive that is cut short or damaged into one line."""
    try:
        yield
    except Exception as error:
        kinds: tuple[type[Exception], ...] = (
            EOFError, gzip.BadGzipFile, lzma.LZMAError, tarfile.ReadError, zipfile.BadZipFile,
            zlib.error,
        )  # fmt: skip
        if "tensorflow" in sys.modules:  # its files raise where others return no bytes
            kinds += (sys.modules["tensorflow"].errors.OutOfRangeError,)
        # TFDS raises some anew, as another type.
        damage: BaseException | None = error
        while damage and not isinstance(damage, kinds):
            damage = damage.__cause__
        if not damage:
            raise
        reason = " ".join(f"{type(damage).__name__}: {damage}".split())
        raise RunError(
            f"{builder.info.full_name} cannot be prepared: an archive of those in {manual} or "
            f"{builder._data_dir_root}/downloads is damaged; fetch it again ({reason})"
        ) from None
