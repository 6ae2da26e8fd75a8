"""Sums over a split in double precision."""

import numpy as np
import pytest

from xception_jax.data import stream
from xception_jax.training import sharding
from xception_jax.training.evaluation import Evaluator


@pytest.mark.parametrize("batch_size", [8, 256])
def test_sums_do_not_lose_what_a_float32_would(digits, batch_size):
    """The mean of 360 losses near a million, where float32 keeps no more than a sixteenth."""

    def evaluate_batch(weights, batch):
        mask = np.asarray(batch["mask"])
        loss = np.float32(1e6 + 0.0625) * mask.sum()
        return {"loss": np.float32(loss), "top1": mask.sum(), "examples": mask.sum()}

    reader = stream.Reader(digits["test"], stream.Images(8))
    evaluator = Evaluator(reader, sharding.make_mesh(1), evaluate_batch, batch_size)
    sums = [min(batch_size, 360 - start) for start in range(0, 360, batch_size)]
    expected = sum(float(np.float32(np.float32(1e6 + 0.0625) * n)) for n in sums) / 360
    assert evaluator({})["loss"] == pytest.approx(expected, abs=1e-9)
    assert evaluator({})["examples"] == 360
