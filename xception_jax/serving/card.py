"""The README of an export. On the Hub it is the model card, so it begins with the Hub's fields."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from xception_jax.training.metrics import SHARES
from xception_jax.training.trained import Trained
from xception_jax.utils.numbers import for_json
from xception_jax.utils.text import printable
from xception_jax.weights import initial

# What the Hub takes as the name of a license: https://huggingface.co/docs/hub/repositories-licenses
_LICENSE = re.compile(r"[a-z][a-z0-9.-]*")
_OF_HUB = re.compile(r"hf:([\w.-]+/[\w.-]+).*", re.ASCII)


def facts_of(trained: Trained) -> dict[str, Any]:
    """What the card of a checkpoint says of its training, for `source` in `model.json`.

    Raises:
      RunError: the file about the initial weights is damaged.
    """
    found: dict[str, Any] = {"examples": trained.meta.train_examples}
    if trained.meta.digests is not None:
        found["checkpoint"] = trained.digest
    if trained.metrics is not None and trained.is_evaluated:
        split = trained.config.data.eval_split
        found["results"] = [{"split": split, **for_json(trained.metrics)}]
    began_from = initial.source_of(trained.workdir)
    return found | ({"init_from": began_from} if began_from else {})


def readme(about: dict[str, Any]) -> str:
    """The README of an export, in Markdown.

    Args:
      about: the content of `model.json`, with `program`.
    """
    size, source = about["resize"]["size"], about["source"]
    sizes = (
        "images of any size, the same for all images of a batch"
        if about["resize"]["by"] == "program"
        else f"images of {size} x {size} pixels; resize others before"
    )
    shape = ", ".join(map(str, about["input"]["shape"]))
    kind, packages, logits = "ONNX", "onnxruntime", ". `logits` are the values before"
    if not _is_onnx(about):
        kind = f"StableHLO for {', '.join(about['platforms'])}"
        packages, logits = "jax flatbuffers", ""
    history = "".join(f"- {line}.\n" for line in (*_origin(source), *_quality(source)))
    if history:
        history = f"\n## Training and results\n\n{history}"
    return f"""{_header(about)}
# An image classifier, exported by xception_jax

`{about["program"]["file"]}` is {kind}, including the weights.

- Input: RGB images, {about["input"]["dtype"]} `[{shape}]`; {sizes}.
- Output: {_outputs(about)} of {len(about["classes"])} classes, float32{logits}.
- Preprocessing: {about["preprocessing"]}.

`model.json` has the same facts as JSON, with the names of the classes in order and the versions.
`classify.py` prepares and classifies images of any size. It runs without xception_jax:

    pip install {packages} pillow
    python classify.py IMAGE...
{history}"""


def _is_onnx(about: dict[str, Any]) -> bool:
    return bool(about["program"]["file"].endswith(".onnx"))


def _header(about: dict[str, Any]) -> str:
    """The Hub's fields, as YAML; each value is JSON, which YAML includes."""
    source = about["source"]
    weights = source.get("init_from") or source
    stated, name = _said(weights, "license"), _OF_HUB.fullmatch(_said(weights, "name"))
    fields = {
        "license": stated if _LICENSE.fullmatch(stated) else "",
        "library_name": "onnx" if _is_onnx(about) else "jax",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", *([source["model"]] if "model" in source else [])],
        "base_model": name[1] if name else "",
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in fields.items() if value]
    return "\n".join(["---", *lines, "---", ""])


def _said(weights: Any, key: str) -> str:
    """What weights say of themselves, or those that they were converted from; empty: nothing."""
    while isinstance(weights, Mapping) and key not in weights:
        weights = weights.get("of")
    return str(weights[key]) if isinstance(weights, Mapping) else ""


def _first(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    """The weights from which others were converted, as far as they have a name."""
    found, one = weights, weights.get("of")
    while isinstance(one, Mapping):
        found = one if one.keys() & {"name", "file"} else found
        one = one.get("of")
    return found


def _outputs(about: dict[str, Any]) -> str:
    fitted = about["source"].get("calibration")
    calibrated = fitted is not None and fitted["temperature"] != 1
    how = f"calibrated (temperature {fitted['temperature']:.4g}) " if calibrated else ""
    return f"{how}{about['output']['activation']} probabilities"


def _origin(source: Mapping[str, Any]) -> Iterator[str]:
    """Lines about the data and the weights."""
    if "model" in source:
        yield f"Model: {_code(source['model'])}"
    if "step" not in source:
        if told := _weights(source):
            yield f"Weights: {told}"
        return
    count = f", {source['examples']:,} images" if "examples" in source else ""
    if "data" in source:
        yield f"Trained on {_code(source['data'])}{count}"
    kind = {"ema": "averaged weights"}.get(source.get("weights", ""), "weights as trained")
    digest = source.get("checkpoint")
    yield f"Checkpoint: step {source['step']}, {kind}" + (f", SHA-256 {digest}" if digest else "")
    if "init_from" in source:
        yield f"The training began from {_weights(source['init_from'])}"


def _weights(weights: Mapping[str, Any]) -> str:
    """Weights and their source in a line."""
    first = {"license": _said(weights, "license"), **_first(weights)}
    name = next((first[key] for key in ("name", "file", "init_from") if first.get(key)), None)
    told = [] if name is None else [_code(name)]
    labels = {"license": "license ", "url": "", "revision": "revision ", "sha256": "SHA-256 "}
    told += [f"{label}{printable(first[key], 200)}" for key, label in labels.items()
             if first.get(key)]  # fmt: skip
    return ", ".join(told)


def _quality(source: Mapping[str, Any]) -> Iterator[str]:
    """Lines about metrics and calibration."""
    for result in source.get("results", ()):
        shown = ", ".join(_metrics(result))
        tested = " (a test set, by which nothing was chosen)" if result.get("tested") else ""
        yield f"On {_code(result['split'])}{tested}: {shown}"
    fitted = source.get("calibration")
    if not fitted:
        return
    before, after = fitted["before"], fitted["after"]
    where = f"{fitted['examples']:,} examples of {_code(fitted['data'])}"
    yield (
        f"Calibrated on {where}: temperature {fitted['temperature']:.4g}, expected calibration "
        f"error {before['ece']:.4f} before and {after['ece']:.4f} after"
    )
    if fitted.get("thresholds"):
        yield (
            f"A class is present from its threshold on: `source.calibration.thresholds` in "
            f"`model.json`, with a mean F1 of {after['f1']:.4f} on these examples "
            f"({before['f1']:.4f} with 0.5)"
        )


def _metrics(result: Mapping[str, Any]) -> Iterator[str]:
    shares_first = sorted(result, key=lambda name: name.rpartition("/")[2] not in SHARES)
    for name in shares_first:
        value = result[name]
        prefix, _, kind = name.rpartition("/")
        label = f"{prefix}/{SHARES.get(kind, kind)}".lstrip("/")
        if name in ("split", "tested") or value is None or (kind == "skipped" and not value):
            continue
        if isinstance(value, int):
            yield f"{label} {value:,}"
        else:
            yield f"{label} {value:.2%}" if kind in SHARES else f"{label} {value:.4f}"


def _code(text: object) -> str:
    """A name as code in Markdown, which shows it as it is."""
    return f"`{printable(text, 200).replace('`', chr(39))}`"
