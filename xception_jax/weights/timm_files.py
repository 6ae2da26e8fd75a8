"""timm's files: `.safetensors`, and `.pth` as torch reads it without running what it says."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xception_jax.errors import UsageError
from xception_jax.weights import timm

PICKLED = (".pth", ".pt", ".bin", ".tar")
SUFFIXES = (".safetensors", *PICKLED)


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise UsageError("a .pth file needs torch: pip install torch; or take the .safetensors that"
                         " timm has of the same weights") from None  # fmt: skip
    return torch


def read(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """A file's tensors by timm's names, and the names of those that are left out.

    A training checkpoint of timm's is unwrapped as by timm/models/_helpers.py: averaged weights
    before the others.

    Raises:
      UsageError: the file is damaged, or holds more than tensors.
    """
    held = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    out = [name for name in held if timm.left_out(name)]
    return {name: held[name] for name in held if name not in out}, out


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except Exception as error:
        raise UsageError(f"{path} is damaged or no .safetensors file: {_reason(error)}") from None


def _pickled(path: Path) -> dict[str, np.ndarray]:
    torch = _torch()
    try:
        # timm's training checkpoints hold their flags as a Namespace, which is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError and more
        raise UsageError(
            f"{path} is damaged, no torch file, or holds more than tensors; nothing of it was run: "
            f"{_reason(error)}"
        ) from None
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(held, dict) and held.get(key) is not None:
            held = held[key]
            break
    if not isinstance(held, dict) or not all(map(torch.is_tensor, held.values())):
        raise UsageError(f"{path} holds no state_dict of tensors")
    return {_clean(name): _array(tensor, torch) for name, tensor in held.items()}


def _clean(name: str) -> str:
    """Without what torch.compile and DistributedDataParallel put before it."""
    for prefix in ("_orig_mod.", "module.", "_orig_mod."):
        name = name.removeprefix(prefix)
    return name


def _array(tensor: Any, torch: Any) -> np.ndarray:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0]


def preprocessing(path: Path) -> dict[str, Any]:
    """How images are to be made, where a `config.json` of timm's lies beside the file.

    Raises:
      UsageError: it asks for another normalization than to [-1, 1], the models' own.
    """
    beside = path.with_name("config.json")
    try:
        config = json.loads(beside.read_text())["pretrained_cfg"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    for name in ("mean", "std"):
        if any(value != 0.5 for value in config.get(name, ())):
            raise UsageError(
                f"{beside}: the weights take images of {name} {config[name]}; the models here take "
                f"[-1, 1], mean and std 0.5"
            )
    made = {"eval_crop": config.get("crop_pct"), "interpolation": config.get("interpolation")}
    size = config.get("input_size")
    return {name: value for name, value in made.items() if value is not None} | (
        {"image_size": size[-1]} if size else {}
    )


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
