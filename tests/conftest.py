"""What the tests share. They run on eight virtual CPU devices, most of them on the first alone."""

import os
import tempfile

# Before JAX and TFDS are imported, here and in the processes that tests start.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["TFDS_DATA_DIR"] = tempfile.mkdtemp(prefix="tfds-")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "xception_jax-compiled")
)

import pytest

from xception_jax import config as config_lib
from xception_jax.data import sources


@pytest.fixture(scope="session")
def digits() -> dict[str, sources.Source]:
    """The embedded data set's two splits."""
    return {split: sources.open_split("optical_digits", split) for split in ("train", "test")}


@pytest.fixture
def small_config():
    """A run of seconds: the digits at 8x8 through the narrowest Xception there is."""
    config = config_lib.default()
    config.duration = "12 steps"
    config.model.width = 0.02
    config.model.middle_blocks = 1
    config.model.stem_stride = 1
    config.model.dropout = 0.2
    config.model.bn_virtual_batch = 8
    config.data.image_size = 8
    config.data.batch_size = 64
    config.augment.shift = 1
    config.augment.flip = True
    config.optimizer.reference_batch = 0
    config.optimizer.weight_decay = 1e-4
    config.ema.decay = 0.9
    config.mesh.data = 1
    config.eval.every = "6 steps"
    config.checkpoint.every = "2 steps"
    config.log.every = "1 step"
    return config
