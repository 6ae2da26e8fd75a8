"""Reads checkpoints, compares them with their manifests, and moves damaged ones away."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import orbax.checkpoint as ocp
from etils import epath

from xception_jax.errors import RunError
from xception_jax.training.checkpoint import frozen_part
from xception_jax.training.checkpoint.digest import digests
from xception_jax.training.checkpoint.manifest import DamagedCheckpointError, Meta
from xception_jax.training.state import Tree
from xception_jax.utils import retry

T = TypeVar("T")


def read_arrays(folder: Path, target: Tree) -> Tree:
    """An item's arrays. Orbax's handler, unlike its manager, does not wait for other processes."""
    handler = ocp.StandardCheckpointHandler()
    try:
        return handler.restore(epath.Path(folder), args=ocp.args.StandardRestore(target))
    finally:
        handler.close()


def as_damage(folder: Path, action: Callable[[], T], what: str | None = None) -> T:
    """Converts the various errors of Orbax and TensorStore to `DamagedCheckpointError`."""
    what = what or f"checkpoint {folder.name}"
    try:
        return action()
    except RunError:
        raise
    except Exception as error:
        if retry.out_of_device_memory(error):
            raise
        if not os.path.lexists(folder):
            raise DamagedCheckpointError(
                f"{what} no longer exists; a run deletes old checkpoints. Start the command again"
            ) from error
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DamagedCheckpointError(f"{what} cannot be read: {reason[0]}") from error


def compare(step: int, found: dict[str, Tree], meta: Meta, checkpoints: Path) -> None:
    """Raises `DamagedCheckpointError` unless the arrays match the manifest's digests."""
    for item, tree in found.items():
        now, _ = digests(tree, meta.digest_algorithm)
        then = (meta.digests or {}).get(item, {})
        wrong = [leaf for leaf in now | then if now.get(leaf) != then.get(leaf)]
        for leaf in wrong:
            if frozen_part.is_held(item, leaf, meta.frozen):
                raise frozen_part.damaged(
                    f"the frozen part {frozen_part.place(checkpoints, meta)} is damaged: "
                    f"{item}.{leaf} is not what was saved"
                )
        if wrong:
            raise DamagedCheckpointError(
                f"checkpoint {step} is damaged: {item}.{wrong[0]} is not what was saved"
            )


def move_aside(checkpoint: Path) -> str:
    """Moves a checkpoint to `workdir/damaged`; returns its new place."""
    aside = checkpoint.parents[1] / "damaged"
    if os.path.lexists(aside) and not aside.is_dir():
        raise RunError(f"{aside} is not a folder, so the damaged checkpoint {checkpoint.name} "
                       f"cannot be moved there; move {aside} away")  # fmt: skip
    aside.mkdir(exist_ok=True)
    place, number = aside / checkpoint.name, 0
    while os.path.lexists(place):
        number += 1
        place = aside / f"{checkpoint.name}.{number}"
    os.rename(checkpoint, place)
    return str(place)
