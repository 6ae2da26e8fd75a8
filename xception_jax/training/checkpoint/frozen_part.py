"""The leaves of a state that are not trained: written once a run, apart from its steps.

A run that trains only the head of an Xception changes 0.2 % of its state. The rest is stored in
`checkpoints/frozen/<name>/`. The manifest of each step names the parts that are frozen, and holds
the digests of all leaves; `<name>` is a digest of those that are frozen.
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

# The folder of a frozen part, and what Orbax makes of its name while it writes.
_OURS = re.compile(r"[0-9a-f]{16}(\.orbax-checkpoint-tmp.*)?")


class DamagedFrozenPartError(RunError):
    """The frozen part is not what was saved. The steps that need it are not at fault."""


def damaged(complaint: str) -> DamagedFrozenPartError:
    """The error of a complaint, with the way on."""
    return DamagedFrozenPartError(
        f"{complaint}; checkpoints need it: put a copy of that folder there, or begin another run"
    )


def is_held(item: str, leaf: str, frozen: tuple[str, ...]) -> bool:
    """Whether a leaf, named by its path in an item of a state, is among the frozen parts."""
    if item == "opt_state":  # it has none of them
        return False
    if item == "ema":
        leaf = leaf.partition(".")[2]  # below "params" or "batch_stats"
    return is_frozen(leaf, frozen)


def split(
    items: dict[str, Tree], frozen: tuple[str, ...]
) -> tuple[dict[str, Tree], dict[str, Tree]]:
    """A state's items as what is trained and what is frozen.

    Args:
      items: trees by name, see `manager.ITEMS`.
      frozen: see `state.frozen_parts`.

    Returns:
      Twice the items that have a leaf there, with None in place of the leaves of the other one.
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
    """The folder of a step's frozen leaves, which follows from its manifest."""
    digests = sorted(
        [item, leaf, digest]
        for item, leaves in (meta.digests or {}).items()
        for leaf, digest in leaves.items()
        if is_held(item, leaf, meta.frozen)
    )
    return checkpoints / "frozen" / hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:16]


def write(folder: Path, held: dict[str, Tree], needed: Collection[Path]) -> None:
    """Writes the frozen items of a state. All processes call it together.

    What is there already goes: nobody has read it whole, so a crash may have left half of it.

    Args:
      folder: from `place`.
      held: from `split`.
      needed: such folders of the checkpoints that there are; others beside them are deleted.

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
    """Has the system write all of a folder now: no later save would replace what a crash loses."""
    for path in (*folder.rglob("*"), folder, *folder.parents[:2]):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
        finally:
            os.close(descriptor)
