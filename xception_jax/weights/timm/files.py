"""timm's files, and those of other trainings in torch: `.safetensors`, and what torch pickles."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from xception_jax.errors import UsageError
from xception_jax.utils.text import printable
from xception_jax.weights import files, safetensors_files
from xception_jax.weights.files import Stored
from xception_jax.weights.tensors import float32, listed
from xception_jax.weights.timm import names as timm_names
from xception_jax.weights.timm import torch_files

PICKLED = (".pth", ".pt", ".bin", ".tar", ".ckpt")
SUFFIXES = (".safetensors", *PICKLED)

# What torch.compile, DataParallel, Lightning modules and timm's features_only put before names.
_PREFIXES = ("_orig_mod.", "module.", "model.", "net.", "backbone.", "body.")
# The weights of a training's checkpoint, averaged ones first, as timm/models/_helpers.py.
_WEIGHTS = ("state_dict_ema", "ema_state_dict", "model_ema", "params_ema",
            "state_dict", "model_state_dict", "model", "net", "params", "weights")  # fmt: skip
_FIRST = ("conv1.weight", "stem.0.conv.weight", "stem.0.weight", "Conv2d_1a_3x3.conv.weight")


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise UsageError("to write a .pth file needs torch: pip install torch; or write "
                         ".safetensors, which timm reads too") from None  # fmt: skip
    return torch


def read(path: Path) -> tuple[dict[str, Stored], list[str]]:
    """A file's tensors by timm's names, and what is to be said of them.

    Understood besides timm's own: checkpoints of its training, of Lightning and of DataParallel;
    `features_only`; Cadene's pretrained-models.pytorch; models of one channel (`in_chans=1`).

    Raises:
      UsageError: the file is damaged, or holds more than tensors and plain data.
    """
    if path.suffix == ".safetensors":
        held, notes = safetensors_files.read(path)[0], list[str]()
    else:
        held, notes = _pickled(path)
    found: dict[str, Stored] = {}
    for name, tensor in held.items():
        if name == "n_averaged":  # a count of torch.optim.swa_utils.AveragedModel
            continue
        if (clean := _clean(name)) in found:
            raise UsageError(f"{path} holds {printable(clean, 80)} twice, as "
                             f"{printable(name, 80)} too")  # fmt: skip
        found[clean] = tensor
    tower = [name for name in found if name.startswith("AuxLogits.")]
    if tower:
        notes.append(f"left out, as the logits do without: {listed(tower)}")
    kept = {name: tensor for name, tensor in found.items() if not timm_names.left_out(name)}
    return _adapted(_cadene(kept, notes), path, notes), notes


def _pickled(path: Path) -> tuple[dict[str, Stored], list[str]]:
    held, tensor = torch_files.read(path)
    held, notes = _state_dict(held, path)
    found = {}
    for name, part in held.items():
        if not isinstance(name, str):
            raise UsageError(f"{path} holds no state_dict: its key {printable(ascii(name), 80)} "
                             f"is no name of a tensor")  # fmt: skip
        stored = tensor(name, part)
        if stored is None:
            raise UsageError(f"{path} holds no state_dict of tensors: {printable(name, 80)} is "
                             f"none")  # fmt: skip
        found[name] = stored
    return found, notes


def _state_dict(held: Any, path: Path) -> tuple[dict[Any, Any], list[str]]:
    """The dict of tensors that a file's object is or holds, and which one it is if not the only."""
    if not isinstance(held, dict):
        raise UsageError(f"{path} holds no state_dict: it is a {type(held).__name__}")

    def has_tensors(part: Any) -> bool:
        return isinstance(part, dict) and any(map(torch_files.is_tensor, part.values()))

    keys = [key for key in _WEIGHTS if has_tensors(held.get(key))]
    if keys:
        others = f", not those of {', '.join(keys[1:])}" if keys[1:] else ""
        if "ema" in keys[0]:
            note = f"the averaged weights of the checkpoint are taken ({keys[0]}){others}"
        else:
            note = f"the weights of {keys[0]} are taken{others}" if others else ""
        return held[keys[0]], [note] if note else []
    if not has_tensors(held):
        named = [printable(ascii(key), 40) for key in list(held)[:5]]
        named += ["..."] if len(held) > 5 else []
        raise UsageError(
            f"{path} holds no state_dict of tensors: its keys are {', '.join(named) or 'none'}; "
            f"expected is a state_dict, or a dict that has one as {', '.join(_WEIGHTS)}"
        )
    return held, []


def _clean(name: str) -> str:
    """Without what wraps a model, and with the dots that `features_only` flattens."""
    while prefix := next(filter(name.startswith, _PREFIXES), None):
        name = name.removeprefix(prefix)
    return re.sub(r"^(stem|blocks)_(\d+)\.", r"\1.\2.", name)


def _cadene(held: dict[str, Stored], notes: list[str]) -> dict[str, Stored]:
    """By timm's names and shapes what has those of Cadene's pretrained-models.pytorch."""
    found = {}
    for name, tensor in held.items():
        if name.startswith("last_linear."):
            name = name.replace("last_linear.", "fc.")
        if name.endswith("pointwise.weight") and len(tensor.shape) == 2:
            tensor = _with(tensor, (*tensor.shape, 1, 1), lambda x: x[:, :, None, None])
        found[name] = tensor
    if found.keys() != held.keys():
        notes.append("Cadene's last_linear is taken for timm's fc")
    return found


def _adapted(held: dict[str, Stored], path: Path, notes: list[str]) -> dict[str, Stored]:
    """With a first convolution of three channels, where it has one.

    As timm/models/_manipulate.py adapts one channel to three: each has a third of the kernel, so
    that the logits of a grey image, of three equal channels, stay what they are.
    """
    for name in _FIRST:
        if name not in held or len(shape := held[name].shape) != 4 or shape[1] == 3:
            continue
        if shape[1] != 1:
            raise UsageError(f"{path}: {name} takes {shape[1]} channels (in_chans); the models "
                             f"here take 3, and 1 can be adapted")  # fmt: skip
        what = f"{path}: {name}"
        held[name] = _with(
            held[name],
            (shape[0], 3, *shape[2:]),
            lambda x, what=what: float32(x, what).repeat(3, axis=1) / np.float32(3),
        )
        notes.append("adapted from one channel to three (in_chans=1): the logits are those of "
                     "grey images")  # fmt: skip
    return held


def _with(tensor: Stored, shape: tuple[int, ...], change: Any) -> Stored:
    return replace(tensor, shape=shape, read=lambda: change(tensor.read()))


def preprocessing(path: Path) -> dict[str, Any]:
    """How images are to be made, where a `config.json` of timm's lies beside the file.

    Raises:
      UsageError: it asks for another normalization than to [-1, 1], the models' own.
    """
    beside = path.with_name("config.json")
    if not beside.exists():
        return {}
    try:
        config = files.read_json(beside)
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        raise UsageError(f"{beside}, which timm has beside its weights, cannot be read: "
                         f"{files.reason(error)}") from None  # fmt: skip
    config = config.get("pretrained_cfg") if isinstance(config, dict) else None
    if not isinstance(config, dict):
        return {}  # of another program
    for name in ("mean", "std"):
        if config.get(name) not in (None, 0.5, [0.5], [0.5] * 3):
            asked = printable(json.dumps(config[name]), 60)
            raise UsageError(f"{beside}: the weights take images of {name} {asked}; the models "
                             f"here take [-1, 1], mean and std 0.5")  # fmt: skip
    made = {"eval_crop": config.get("crop_pct"), "interpolation": config.get("interpolation")}
    size = config.get("input_size")
    made["image_size"] = size[-1] if isinstance(size, list) and size else size
    for name, kind in (("eval_crop", float | int), ("interpolation", str), ("image_size", int)):
        if not isinstance(made[name], kind | None):
            raise UsageError(f"{beside}: {name} is {printable(ascii(made[name]), 60)}")
    return {name: value for name, value in made.items() if value is not None}


def write(path: Path, kind: str, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes what `timm.create_model(NAME, checkpoint_path=PATH)` reads.

    Args:
      path: of the file.
      kind: the name it will have, by whose ending it is `.safetensors` or torch's.
      tensors: timm's by name.
    """
    if kind.endswith(".safetensors"):
        from safetensors.numpy import save_file

        save_file(dict(tensors), path, {"format": "pt"})
    else:
        torch = _torch()
        torch.save({name: torch.from_numpy(array) for name, array in tensors.items()}, path)
