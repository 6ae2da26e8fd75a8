"""Sums over a split in double precision."""

import jax
import numpy as np
import pytest

from xception_jax.data.batches import Host, Reader
from xception_jax.data.order import Sampling
from xception_jax.data.render.decode import Images
from xception_jax.training import sharding
from xception_jax.training.evaluation import Evaluator


def test_the_reader_is_what_the_config_says(digits, small_config):
    small_config.data.crop_area, small_config.data.crop_aspect = (0.5, 0.9), (0.8, 1.2)
    small_config.data.eval_preset, small_config.data.eval_crop = "timm", 0.7
    small_config.data.threads, small_config.data.in_memory = 3, 5
    small_config.data.decode_parts = False
    small_config.data.balanced, small_config.data.repeats = True, 2
    small_config.data.mix_weights = (1.0, 2.0)
    reader = Reader.from_config(small_config, digits["test"], workers=2)
    assert reader.sampling == Sampling(balanced=True, weights=(1.0, 2.0), repeats=2)
    assert reader.images == Images(8, (0.5, 0.9), (0.8, 1.2), "timm", 0.7, exif=False)
    assert reader.host == Host(threads=3, workers=2, memory=5 * 2**20, decode_parts=False)


@pytest.mark.parametrize("batch_size", [8, 256])
def test_sums_do_not_lose_what_a_float32_would(digits, batch_size):
    """The mean of 360 losses near a million, where float32 keeps no more than a sixteenth."""

    def evaluate_batch(weights, batch):
        mask = np.asarray(batch["mask"])
        loss = np.float32(1e6 + 0.0625) * mask.sum()
        return {"loss": np.float32(loss), "top1": mask.sum(), "examples": mask.sum()}

    reader = Reader(digits["test"], Images(8))
    mesh = sharding.make_mesh(1)
    evaluator = Evaluator(reader, sharding.Layout.replicated(mesh), evaluate_batch, batch_size)
    sums = [min(batch_size, 360 - start) for start in range(0, 360, batch_size)]
    expected = sum(float(np.float32(np.float32(1e6 + 0.0625) * n)) for n in sums) / 360
    assert evaluator({})["loss"] == pytest.approx(expected, abs=1e-9)
    assert evaluator({})["examples"] == 360


def test_weights_that_are_cut_are_gathered_once(digits):
    mesh, seen = sharding.make_mesh(8), []

    def evaluate_batch(weights, batch):
        seen.append(weights["kernel"])
        return {"loss": 0.0, "top1": 0.0, "examples": np.asarray(batch["mask"]).sum()}

    reader = Reader(digits["test"], Images(8))
    evaluator = Evaluator(reader, sharding.Layout.replicated(mesh), evaluate_batch, 64)
    kernel = jax.device_put(np.arange(16.0), sharding.by_example(mesh))
    evaluator({"kernel": kernel})
    assert len(seen) == 6
    assert all(weights is seen[0] for weights in seen)
    assert seen[0].is_fully_replicated
    np.testing.assert_array_equal(seen[0], np.arange(16.0))
    evaluator({"kernel": seen[0]})
    assert seen[-1] is seen[0], "arrays that are already in place are not copied"
