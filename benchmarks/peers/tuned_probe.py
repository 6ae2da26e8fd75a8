"""A linear probe: logistic regression on the pooled features of the initial weights.

    python benchmarks/peers/tuned_probe.py FOLDER START SIDE SEED PRESET

The strength of its regularization is chosen by five-fold cross-validation of the training pictures.
Prints the number of test pictures and the share with errors, as JSON.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from xception_jax.data import readers
from xception_jax.data.batches import Reader
from xception_jax.data.render.decode import Images
from xception_jax.training import state, step
from xception_jax.weights import pretrained
from xception_jax.weights.tensors import abstract, variables

_BATCH = 50


def features(folder: str, split: str, start: str, side: int, preset: str):
    """The features of a split's pictures and their labels."""
    file = pretrained.open_pretrained(start)
    about = file.about(file.model)
    network = abstract(
        file.model, None, {k: v for k, v in about.overrides.items() if v is not None}
    )
    tensors = file.tensors(network, file.model)
    for name, variable in variables(network).items():
        variable.set_value(jnp.asarray(tensors[name]))
    graphdef, params, batch_stats = state.split(network)
    weights = {"params": params, "batch_stats": batch_stats}
    answer = jax.jit(lambda weights, pixels: step.apply(graphdef, weights, pixels)[0])
    source = readers.open_split(f"folder:{folder}", split)
    reader = Reader(source, Images(side, eval_preset=preset, exif=False))
    found, labels = [], []
    for batch in reader.evaluation_batches(batch_size=_BATCH):
        real = batch["mask"] > 0
        found.append(np.asarray(answer(weights, batch["image"]))[real])
        labels.append(batch["label"][real])
    return np.concatenate(found), np.concatenate(labels)


def main(folder: str, start: str, side: str, seed: str, preset: str = "keras") -> None:
    """Fits the probe and prints its error on the test pictures."""
    inputs, labels = features(folder, "train", start, int(side), preset)
    folds = StratifiedKFold(5, shuffle=True, random_state=int(seed))
    probe = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        {"logisticregression__C": np.logspace(-5, 1, 13)}, cv=folds,
    )  # fmt: skip
    probe.fit(inputs, labels)
    inputs, labels = features(folder, "test", start, int(side), preset)
    error = 1 - probe.score(inputs, labels)
    print(json.dumps({"tested": len(labels), "error": error, "chosen": str(probe.best_params_)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
