"""Xception and its relatives in JAX: reproducible training, exact evaluation, safe checkpoints.

As a library:

    import xception_jax

    config = xception_jax.recipes.load("digits")
    trained = xception_jax.train.train(config, pathlib.Path("runs/digits"))
    best = xception_jax.evaluate.evaluate(trained.workdir, step="best")
    print(best.metrics["top1"])

A result is a frozen dataclass; its `to_json` returns the output of the command's `--json`. Each
module is imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xception_jax import (
        config,
        contact_sheet,
        convert,
        data,
        evaluate,
        export,
        finetune,
        models,
        predict,
        prepare,
        recipes,
        train,
        weights,
    )

__version__ = "0.2.0"
__all__ = [
    "config",
    "contact_sheet",
    "convert",
    "data",
    "evaluate",
    "export",
    "finetune",
    "models",
    "predict",
    "prepare",
    "recipes",
    "train",
    "weights",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
