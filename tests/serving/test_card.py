"""The README of an export: what it says of the model, and the Hub's fields at its start."""

import json
import shutil

import pytest
import yaml

from tests.weights.remote import uploads
from xception_jax import export
from xception_jax.errors import RunError
from xception_jax.finetuning import decisions
from xception_jax.serving import card
from xception_jax.training.trained import Trained

STARTED = {
    "init_from": "hf:timm/xception65.ra3_in1k", "name": "hf:timm/xception65.ra3_in1k",
    "format": "timm", "license": "apache-2.0", "revision": "c0ffee", "sha256": "ab" * 32,
}  # fmt: skip


def about(source, file="model.bin", activation="softmax"):
    """The part of `model.json` that the card needs."""
    return {
        "program": {"file": file}, "platforms": ["cpu"], "source": source, "classes": ["a", "b"],
        "resize": {"by": "program", "size": 8}, "preprocessing": "none",
        "input": {"shape": ["batch", 8, 8, 3], "dtype": "uint8"},
        "output": {"activation": activation},
    }  # fmt: skip


def parts(text):
    """The Hub's fields, which the Hub accepts, and the lines of the rest."""
    assert uploads._card(text)[0] == 200
    start, fields, rest = text.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(fields), rest.splitlines()


@pytest.mark.parametrize(("file", "library"), [("model.bin", "jax"), ("model.onnx", "onnx")])
def test_a_run_says_where_it_began(file, library):
    fields, lines = parts(card.readme(about({"model": "xception65", "step": 7, "weights": "ema",
                                             "init_from": STARTED}, file)))  # fmt: skip
    assert fields == {
        "license": "apache-2.0", "library_name": library, "pipeline_tag": "image-classification",
        "tags": ["image-classification", "xception65"], "base_model": "timm/xception65.ra3_in1k",
    }  # fmt: skip
    [line] = [line for line in lines if "began from" in line]
    assert line == (
        "- The training began from `hf:timm/xception65.ra3_in1k`, license apache-2.0, revision "
        f"c0ffee, SHA-256 {'ab' * 32}."
    )


def test_a_converted_file_says_what_it_was():
    """The hash is that of the file that is named."""
    origin = {**STARTED, "file": "model.safetensors"}
    source = {"model": "xception65", "format": "xception_jax", "file": "ours", "sha256": "cd" * 32,
              "of": origin}  # fmt: skip
    fields, lines = parts(card.readme(about(source)))
    assert fields["base_model"] == "timm/xception65.ra3_in1k"
    [line] = [line for line in lines if line.startswith("- Weights")]
    assert "ab" * 32 in line
    assert "cd" * 32 not in line
    run = {"format": "xception_jax", "step": 3, "weights": "ema"}
    _, lines = parts(card.readme(about({**source, "of": run})))
    assert f"- Weights: `ours`, SHA-256 {'cd' * 32}." in lines


@pytest.mark.parametrize(
    "source",
    [
        {},
        {"name": "a`b\n---\nlicense: mit", "license": "my own\n---"},
        {"license": ["mit"], "of": 3, "model": "--- yes: [no]"},
        {
            "model": "x",
            "step": 1,
            "weights": "raw",
            "init_from": {"init_from": "runs/a", "step": 1},
        },
    ],
)
def test_no_source_breaks_the_card(source):
    fields, lines = parts(card.readme(about(source)))
    assert "license" not in fields
    assert fields["tags"][0] == "image-classification"
    assert not any(line.startswith(("license", "---")) for line in lines)


def test_thresholds_are_told():
    fitted = {
        "temperature": 2.0, "data": "folder:a", "examples": 1234, "thresholds": [0.3, 0.6],
        "before": {"nll": 1, "ece": 0.2, "f1": 0.5}, "after": {"nll": 1, "ece": 0.1, "f1": 0.75},
    }  # fmt: skip
    text = card.readme(about({"calibration": fitted}, activation="sigmoid"))
    assert "Output: calibrated (temperature 2) sigmoid probabilities of 2 classes" in text
    assert "Calibrated on 1,234 examples of `folder:a`: temperature 2, expected" in text
    assert "a mean F1 of 0.7500 on these examples (0.5000 with 0.5)" in text


def test_a_checkpoint_is_described(undisturbed, tmp_path):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    (run / "init_from.json").write_text(json.dumps(STARTED))
    trained = Trained.find(run)
    kept = {"workdir": "run", "finished": True, "step": trained.step, "split": "held", "top1": 0.5,
            "tested": True, "examples": 1234, "skipped": 0, "classes": []}  # fmt: skip
    decided = decisions.Decisions("optical_digits", "w", 0, {}, {}, (), "held", result=kept)
    decisions.write(run, decided)
    done = export.export_run(run, tmp_path / "out", platforms=("cpu",), resize="outside")
    assert done.about["source"]["checkpoint"] == trained.digest
    fields, lines = parts((tmp_path / "out/README.md").read_text())
    assert fields["base_model"] == "timm/xception65.ra3_in1k"
    text = "\n".join(lines)
    top1 = trained.metrics["top1"]
    assert f"- Trained on `{trained.meta.dataset}`, {trained.meta.train_examples:,} images." in text
    assert f"step {trained.step}, averaged weights, SHA-256 {trained.digest}." in text
    assert ("- On `held` (a test set, by which nothing was chosen): top-1 50.00%, examples 1,234."
            in lines)  # fmt: skip
    assert f"- On `test`: top-1 {top1:.2%}" in text
    # Other weights, and other steps, have other results.
    assert "results" not in export._history(run, {"step": trained.step, "weights": "raw"})
    other = export._history(run, {"step": 10, "weights": "ema"}).get("results", [])
    assert [one["split"] for one in other] in ([], ["test"])
    (run / "init_from.json").write_text("{")
    with pytest.raises(RunError, match=r"init_from\.json is damaged: "):
        card.facts_of(trained)
