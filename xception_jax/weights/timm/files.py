"""Files of timm and of other training code in torch: `.safetensors` and torch's pickles."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from xception_jax.config import SCHEMA
from xception_jax.errors import UsageError
from xception_jax.utils.text import printable
from xception_jax.weights import files, safetensors_files
from xception_jax.weights.files import Stored
from xception_jax.weights.tensors import float32, listed
from xception_jax.weights.timm import names as timm_names
from xception_jax.weights.timm import torch_files

PICKLED = (".pth", ".pt", ".bin", ".tar", ".ckpt")
SUFFIXES = (".safetensors", *PICKLED)

# Prefixes of torch.compile, DataParallel, Lightning modules and timm's features_only.
_PREFIXES = ("_orig_mod.", "module.", "model.", "net.", "backbone.", "body.")
# Keys of the weights in a checkpoint, averaged weights first, as in timm/models/_helpers.py.
_WEIGHTS = ("state_dict_ema", "ema_state_dict", "model_ema", "params_ema",
            "state_dict", "model_state_dict", "model", "net", "params", "weights")  # fmt: skip
_FIRST = ("conv1.weight", "stem.0.conv.weight", "stem.0.weight", "Conv2d_1a_3x3.conv.weight")


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise UsageError("a .pth file needs torch: pip install torch; or write .safetensors, "
                         "which timm also reads") from None  # fmt: skip
    return torch


def read(path: Path) -> tuple[dict[str, Stored], list[str]]:
    """A file's tensors by timm's names, and notes for the user.

    It reads timm's weights and also: checkpoints of timm's training, of Lightning and of
    DataParallel; `features_only`; Cadene's pretrained-models.pytorch; models with one input
    channel (`in_chans=1`).

    Raises:
      UsageError: the file is damaged, or contains more than tensors and plain data.
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
            raise UsageError(f"{path} has {printable(clean, 80)} twice, also as "
                             f"{printable(name, 80)}")  # fmt: skip
        found[clean] = tensor
    tower = [name for name in found if name.startswith("AuxLogits.")]
    if tower:
        notes.append(f"ignored, not used for the logits: {listed(tower)}")
    kept = {name: tensor for name, tensor in found.items() if not timm_names.is_unused(name)}
    return _adapted(_cadene(kept, notes), path, notes), notes


def _pickled(path: Path) -> tuple[dict[str, Stored], list[str]]:
    held, tensor = torch_files.read(path)
    held, notes = _state_dict(held, path)
    found = {}
    for name, part in held.items():
        if not isinstance(name, str):
            raise UsageError(f"{path} has no state_dict: its key {printable(ascii(name), 80)} "
                             f"is not the name of a tensor")  # fmt: skip
        stored = tensor(name, part)
        if stored is None:
            raise UsageError(f"{path} has no state_dict of tensors: {printable(name, 80)} is not "
                             f"a tensor")  # fmt: skip
        found[name] = stored
    return found, notes


def _state_dict(held: Any, path: Path) -> tuple[dict[Any, Any], list[str]]:
    """The dict of tensors in a file's object, and a note if the object has several."""
    if not isinstance(held, dict):
        raise UsageError(f"{path} has no state_dict: it is a {type(held).__name__}")

    def has_tensors(part: Any) -> bool:
        return isinstance(part, dict) and any(map(torch_files.is_tensor, part.values()))

    keys = [key for key in _WEIGHTS if has_tensors(held.get(key))]
    if keys:
        others = f", not those of {', '.join(keys[1:])}" if keys[1:] else ""
        if "ema" in keys[0]:
            note = f"uses the averaged weights of the checkpoint ({keys[0]}){others}"
        else:
            note = f"uses the weights of {keys[0]}{others}" if others else ""
        return held[keys[0]], [note] if note else []
    if not has_tensors(held):
        named = [printable(ascii(key), 40) for key in list(held)[:5]]
        named += ["..."] if len(held) > 5 else []
        raise UsageError(
            f"{path} has no state_dict of tensors: its keys are {', '.join(named) or 'none'}; "
            f"expected a state_dict, or a dict with one as {', '.join(_WEIGHTS)}"
        )
    return held, []


def _clean(name: str) -> str:
    """Removes the prefixes of wrappers, and restores the dots that `features_only` replaces."""
    while prefix := next(filter(name.startswith, _PREFIXES), None):
        name = name.removeprefix(prefix)
    return re.sub(r"^(stem|blocks)_(\d+)\.", r"\1.\2.", name)


def _cadene(held: dict[str, Stored], notes: list[str]) -> dict[str, Stored]:
    """Renames and reshapes the tensors of Cadene's pretrained-models.pytorch to timm's."""
    found = {}
    for name, tensor in held.items():
        if name.startswith("last_linear."):
            name = name.replace("last_linear.", "fc.")
        if name.endswith("pointwise.weight") and len(tensor.shape) == 2:
            tensor = _with(tensor, (*tensor.shape, 1, 1), lambda x: x[:, :, None, None])
        found[name] = tensor
    if found.keys() != held.keys():
        notes.append("reads Cadene's last_linear as timm's fc")
    return found


def _adapted(held: dict[str, Stored], path: Path, notes: list[str]) -> dict[str, Stored]:
    """Turns a first convolution of one input channel into one of three.

    As in timm/models/_manipulate.py, each channel gets a third of the kernel. So the logits stay
    the same for a grey image, whose three channels are equal.
    """
    for name in _FIRST:
        if name not in held or len(shape := held[name].shape) != 4 or shape[1] == 3:
            continue
        if shape[1] != 1:
            raise UsageError(f"{path}: {name} has {shape[1]} input channels (in_chans); expected "
                             f"3, or 1, which can be adapted")  # fmt: skip
        what = f"{path}: {name}"
        held[name] = _with(
            held[name],
            (shape[0], 3, *shape[2:]),
            lambda x, what=what: float32(x, what).repeat(3, axis=1) / np.float32(3),
        )
        notes.append("adapted from one channel to three (in_chans=1); logits are the same for grey "
                     "images")  # fmt: skip
    return held


def _with(tensor: Stored, shape: tuple[int, ...], change: Any) -> Stored:
    return replace(tensor, shape=shape, read=lambda: change(tensor.read()))


@dataclass(frozen=True)
class Config:
    """What timm's `config.json` says of the weights in its folder.

    Attributes:
      architecture: the name of the model in `timm.create_model`; None if unknown.
      class_names: None if unknown.
      preprocessing: of images, in the words of `converted.About`.
    """

    architecture: str | None = None
    class_names: tuple[str, ...] | None = None
    preprocessing: dict[str, Any] = field(default_factory=dict)


def read_config(path: Path) -> Config:
    """Reads timm's `config.json` in the folder of a weights file, if it exists.

    Raises:
      UsageError: it is damaged.
    """
    beside = path.with_name("config.json")
    if not beside.exists():
        return Config()
    try:
        config = files.read_json(beside)
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        raise UsageError(f"{beside}, timm's description of the weights, cannot be read: "
                         f"{files.reason(error)}") from None  # fmt: skip
    made_for = config.get("pretrained_cfg") if isinstance(config, dict) else None
    if not isinstance(made_for, dict):
        return Config()  # not timm's file
    architecture, names = config.get("architecture"), config.get("label_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        names = None
    return Config(
        architecture if isinstance(architecture, str) else None,
        None if names is None else tuple(names),
        _preprocessing(beside, made_for),
    )


def _preprocessing(beside: Path, config: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "eval_crop": config.get("crop_pct"),
        "interpolation": config.get("interpolation"),
    }
    size = config.get("input_size")
    if isinstance(size, list) and any(side != size[-1] for side in size[1:]):
        raise UsageError(f"{beside}: input_size is {printable(ascii(size), 60)}, but the models "
                         f"here take square images")  # fmt: skip
    if (mode := config.get("crop_mode")) not in (None, "center"):
        raise UsageError(f"{beside}: crop_mode is {printable(ascii(mode), 60)}, but images are "
                         f"cropped at the centre here ('center')")  # fmt: skip
    made["image_size"] = size[-1] if isinstance(size, list) and size else size
    for name, kind in (("eval_crop", float | int), ("interpolation", str), ("image_size", int)):
        if not isinstance(made[name], kind | None):
            raise UsageError(f"{beside}: {name} is {printable(ascii(made[name]), 60)}")
    for name in ("mean", "std"):
        given = config.get(name)
        alone = given[0] if isinstance(given, list) and len(given) == 1 else given
        made[name] = given if isinstance(alone, list) or alone is None else [alone] * 3
        if complaint := SCHEMA[f"data.{name}"].check(made[name]):
            raise UsageError(f"{beside}: {name} {printable(complaint, 160)}")
    return {name: value for name, value in made.items() if value is not None}


def write(path: Path, kind: str, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a file for `timm.create_model(NAME, checkpoint_path=PATH)`.

    Args:
      path: of the file.
      kind: its final name; the ending selects `.safetensors` or torch's format.
      tensors: by timm's names.
    """
    if kind.endswith(".safetensors"):
        from safetensors.numpy import save_file

        save_file(dict(tensors), path, {"format": "pt"})
    else:
        torch = _torch()
        torch.save({name: torch.from_numpy(array) for name, array in tensors.items()}, path)
