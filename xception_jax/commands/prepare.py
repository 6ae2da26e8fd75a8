r"""Prepares a TFDS data set as array_record, by its own unmodified builder.

    python -m xception_jax.prepare --dataset=imagenet2012 --data_dir=DATA --manual_dir=TAR_FILES
    python -m xception_jax.prepare --dataset=my_photos --imports=my_package.my_photos \
        --beam_options=direct_num_workers=8,direct_running_mode=multi_processing

It first lists downloads, files that you must provide, and disk space, and does not start if it
cannot succeed. After an interruption the same command starts again.
"""

import json
import sys

from absl import flags

from xception_jax.commands import cli
from xception_jax.errors import UsageError
from xception_jax.utils.console import make_console

_DATASET = flags.DEFINE_string("dataset", None, "a TFDS name: NAME, NAME/CONFIG or NAME:VERSION")
_DATA_DIR = flags.DEFINE(cli.PATH, "data_dir", None, "folder of TFDS' data; by default TFDS' own")
_MANUAL_DIR = flags.DEFINE(
    cli.PATH,
    "manual_dir",
    None,
    "folder of files that TFDS cannot download; by default DATA_DIR/downloads/manual",
)
_BEAM_OPTIONS = flags.DEFINE_list(
    "beam_options", [], "Apache Beam's pipeline options, NAME=VALUE, separated by commas"
)
flags.declare_key_flag(cli.IMPORTS.name)
_CHECK_DISK = flags.DEFINE_bool("check_disk", True, "do not start if the disk seems too small")
_CHECK_ARCHIVES = flags.DEFINE_bool(
    "check_archives", True, "do not start if the size of an archive differs from TFDS' size"
)
_JSON = flags.DEFINE_bool(
    "json", False, "print one line of JSON on standard output, all else on standard error"
)


def main() -> None:
    if not _DATASET.value:
        raise UsageError("--dataset is needed; --help shows an example")
    import tensorflow_datasets as tfds

    from xception_jax.prepare import prepare

    console = make_console(stderr=_JSON.value)
    tfds.display_progress_bar(sys.stderr.isatty())
    result = prepare(
        _DATASET.value,
        data_dir=str(_DATA_DIR.value) if _DATA_DIR.value else None,
        manual_dir=str(_MANUAL_DIR.value) if _MANUAL_DIR.value else None,
        beam_options=_BEAM_OPTIONS.value,
        check_disk=_CHECK_DISK.value,
        check_archives=_CHECK_ARCHIVES.value,
        console=console,
    )
    if _JSON.value:
        print(json.dumps(result.to_json()))
        return
    for split, examples in result.splits.items():
        console.print(f"  {split}: {examples:,} examples")
