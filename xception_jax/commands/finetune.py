r"""Fine-tunes a model on a folder of images; chooses the settings, trains, and evaluates.

    python -m xception_jax.finetune photos/pets
    python -m xception_jax.finetune photos/pets --input=xception.keras --workdir=runs/pets \
        --config.data.image_size=128 --config.duration="10 epochs"
    python -m xception_jax.finetune photos/pets --folds=5

The folder has CLASS/*.jpg, or train/CLASS/*.jpg with val/ and test/ beside it, or images and a
labels.csv. The settings are printed with their reasons; --config.FIELD=VALUE replaces one. After
an interruption the same command continues.
"""

import json
import os
from collections.abc import Sequence
from typing import Any

from absl import flags

from xception_jax.commands import cli
from xception_jax.errors import UsageError
from xception_jax.finetuning import table

cli.take_changes()
_INPUT = flags.DEFINE(
    cli.WEIGHTS, "input", table.WEIGHTS, "initial weights: a name or a file, see docs/weights.md"
)
_WORKDIR = flags.DEFINE(
    cli.PATH, "workdir", None, "folder of the run; by default runs/NAME, after the folder of images"
)
_FOLDS = flags.DEFINE_integer(
    "folds", 0, "instead of one model: k-fold cross-validation, predictions out of fold in a CSV",
    lower_bound=0,
)  # fmt: skip
_JSON = flags.DEFINE_bool(
    "json", False, "print one line of JSON on standard output, all else on standard error"
)
flags.declare_key_flag(cli.IMPORTS.name)
flags.declare_key_flag("keep_freed_memory")


def main(arguments: Sequence[str]) -> None:
    if len(arguments) > 1:
        raise UsageError(f"one folder is expected, not {len(arguments)}; --help shows an example")
    changes = cli.changes()
    if not arguments and "data.dataset" not in changes:
        raise UsageError("a folder of images is needed; --help shows an example")
    from xception_jax.finetune import cross_validate, finetune
    from xception_jax.utils import paths
    from xception_jax.utils.console import make_console

    cli.settle(by_itself=False)
    cli.keep_compiled(str(changes.get("compilation_cache", "")))
    given: dict[str, Any] = {
        "data": str(paths.local("FOLDER", arguments[0])) if arguments else None,
        "weights": os.fspath(_INPUT.value),
        "workdir": _WORKDIR.value,
        "changes": changes,
        "console": make_console(stderr=_JSON.value),
    }
    result = cross_validate(folds=_FOLDS.value, **given) if _FOLDS.value else finetune(**given)
    if _JSON.value:
        print(json.dumps(result.to_json()))
