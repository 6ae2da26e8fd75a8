r"""Trains a model, or resumes the run in the folder.

    python -m xception_jax.main --config=configs/digits.py --workdir=runs/digits
    python -m xception_jax.main --config=configs/imagenet.py --workdir=runs/imagenet \
        --config.data.batch_size=512 --config.duration="60 epochs"

Flags can change every field of the config; --list_fields shows all fields.
"""

import json

from absl import flags

from xception_jax import config
from xception_jax.commands import cli
from xception_jax.errors import UsageError

_CONFIG = cli.define_config()
flags.declare_key_flag("config")
_WORKDIR = flags.DEFINE(cli.PATH, "workdir", None, "folder of the run's checkpoints and logs")
_ALLOW = flags.DEFINE_bool(
    "allow_config_changes",
    False,
    "resume a run with another config, if the changed fields do not alter its results",
)
_JSON = flags.DEFINE_bool(
    "json", False, "print one line of JSON on standard output, all else on standard error"
)
_LIST_SPLIT = flags.DEFINE_string(
    "list_split",
    None,
    "print the files of a split and exit; test: the files that evaluation uses, which a run also "
    "writes to eval_files.txt in its folder",
)
_FIELDS = flags.DEFINE_bool("list_fields", False, "print every field of a config and exit")
for _name in cli.SHARED_FLAGS:
    flags.declare_key_flag(_name)


def main() -> None:
    if _FIELDS.value:
        print(config.describe())
        return
    workdir = _WORKDIR.value
    if not flags.FLAGS["config"].present or not (workdir or _LIST_SPLIT.value):
        raise UsageError("--config and --workdir are needed; --help shows an example")
    if _CONFIG.value is None:
        raise UsageError("get_config() of the config file returned None")
    if _LIST_SPLIT.value:
        from xception_jax.training.workdir import files_of

        print("\n".join(files_of(_CONFIG.value, _LIST_SPLIT.value, workdir)))
        return
    assert workdir, "checked above"
    # Imported late, so that --help and a misspelt flag do not wait for JAX.
    from xception_jax.runtime import cluster
    from xception_jax.train import train
    from xception_jax.utils.console import make_console

    cli.settle()
    cli.keep_compiled(_CONFIG.value.get("compilation_cache", ""))
    result = train(
        _CONFIG.value,
        workdir,
        console=make_console(stderr=_JSON.value),
        allow_config_changes=_ALLOW.value,
    )
    if _JSON.value and cluster.is_first():
        print(json.dumps(result.to_json()))
