"""The leaves of a state that are not trained: written once per run, separate from its steps.

A run that only trains the head of an Xception changes 0.2 % of its state. The rest is stored in
`checkpoints/frozen/<name>/`, where `<name>` is a digest of the frozen leaves. The manifest of each
step has the names of the frozen parts and the digests of all leaves.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from xception_jax.errors import RunError
from xception_jax.runtime import cluster
from xception_jax.training.checkpoint.manifest import Meta
from xception_jax.training.state import Tree, combine, is_frozen

# The name of a frozen part's folder, also with the suffix that Orbax adds while it writes.
_OURS = re.compile(r"[0-9a-f]{16}(\.orbax-checkpoint-tmp.*)?")


class DamagedFrozenPartError(RunError):
    """The frozen part is damaged, not the steps that need it."""


def damaged(complaint: str) -> DamagedFrozenPartError:
    """The error for a complaint, with what to do."""
    return DamagedFrozenPartError(
        f"{complaint}; checkpoints need it: restore a copy of that folder, or start a new run"
    )


def is_held(item: str, leaf: str, frozen: tuple[str, ...]) -> bool:
    """Whether a leaf, given by its path in an item of a state, is in a frozen part."""
    if item == "opt_state":  # frozen parts have no optimizer state
        return False
    if item == "ema":
        leaf = leaf.partition(".")[2]  # without "params." or "batch_stats."
    return is_frozen(leaf, frozen)


def split(
    items: dict[str, Tree], frozen: tuple[str, ...]
) -> tuple[dict[str, Tree], dict[str, Tree]]:
    """Splits a state's items into their trained and their frozen leaves.

    Args:
      items: trees by name, see `manager.ITEMS`.
      frozen: see `state.frozen_parts`.

    Returns:
      The items with trained leaves, and the items with frozen leaves. In each, the other leaves are
      None.
    """
    if not frozen:
        return items, {}

    def part(held: bool) -> dict[str, Tree]:
        def keep(item: str, path: Any, leaf: Tree) -> Tree:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            return leaf if is_held(item, name, frozen) == held else None

        trees = {
            item: jax.tree_util.tree_map_with_path(partial(keep, item), tree)
            for item, tree in items.items()
        }
        return {item: tree for item, tree in trees.items() if jax.tree.leaves(tree)}

    return part(held=False), part(held=True)


def join(trained: dict[str, Tree], held: dict[str, Tree]) -> dict[str, Tree]:
    """The inverse of `split`."""
    both = trained.keys() & held.keys()
    return {**trained, **held, **{item: combine(trained[item], held[item]) for item in both}}


def place(checkpoints: Path, meta: Meta) -> Path:
    """The folder of a step's frozen leaves, from its manifest."""
    digests = sorted(
        [item, leaf, digest]
        for item, leaves in (meta.digests or {}).items()
        for leaf, digest in leaves.items()
        if is_held(item, leaf, meta.frozen)
    )
    return checkpoints / "frozen" / hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:16]


def write(folder: Path, held: dict[str, Tree], needed: Collection[Path]) -> None:
    """Writes the frozen items of a state. All processes must call it together.

    An existing folder is replaced, because a crash could have left it incomplete.

    Args:
      folder: from `place`.
      held: from `split`.
      needed: the folders that existing checkpoints need; other frozen parts are deleted.

    Raises:
      RunError: a process could not write.
    """

    def clear() -> None:
        for other in folder.parent.iterdir() if folder.parent.is_dir() else ():
            if other == folder or (other not in needed and _OURS.fullmatch(other.name)):
                shutil.rmtree(other, ignore_errors=True)

    cluster.on_first(clear)
    args = {name: ocp.args.StandardSave(tree) for name, tree in held.items()}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(*held)) as checkpointer:
        checkpointer.save(folder, args=ocp.args.Composite(**args))
    cluster.on_first(partial(_sync, folder))


def _sync(folder: Path) -> None:
    """Flushes a folder to disk: unlike a step, it is not written again after a crash."""
    for path in (*folder.rglob("*"), folder, *folder.parents[:2]):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
        finally:
            os.close(descriptor)
