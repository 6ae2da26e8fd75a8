"""What the tests share. They run on eight virtual CPU devices, most of them on the first alone."""

import atexit
import gc
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

# Before JAX and TFDS are imported, here and in the processes that tests start.
os.environ["JAX_PLATFORMS"] = "cpu"
# Without LLVM's optimizations XLA compiles in two thirds of the time. With AS_USERS it optimizes,
# as in the quick starts: so tests `.ci/run --long`.
_LEVEL = 3 if os.environ.get("AS_USERS") else 0
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count=8 --xla_backend_optimization_level={_LEVEL}"
)
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ["TFDS_DATA_DIR"] = tempfile.mkdtemp(prefix="tfds-")
atexit.register(shutil.rmtree, os.environ["TFDS_DATA_DIR"], ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[1] / ".pytest_cache/compiled")
# A run has dozens of programs that compile in less than JAX' own bound of a second.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import pytest
from ml_collections import ConfigDict

from tests.processes import finish, result
from xception_jax import config as config_lib
from xception_jax.config import registry
from xception_jax.data import readers
from xception_jax.data.source import Source

# Files whose tests take a minute or more together, the longest first. Processes take files of tests
# in this order, so that none has to finish a long one alone.
LONGEST = [
    "test_train.py", "training/test_step.py", "serving/test_program.py", "test_resume.py",
    "training/test_sharding.py", "training/test_features.py", "finetuning/test_finetune.py",
    "launch/test_tpu_vm.py", "test_cli.py", "test_multilabel.py", "models/test_family.py",
    "data/readers/test_bad_files.py", "test_convert.py", "models/test_ops.py",
    "weights/test_hostile.py", "training/checkpoint/test_checkpoints.py",
]  # fmt: skip

# Files and folders whose tests get the marker `once`: the short form of `.ci/run` runs them on one
# Python. XLA takes most of their time, which no Python changes; they test documents and tables; or
# others of their kind run on both: SLURM's launcher and the worker, timm's files, the readers.
ONCE = [
    "augment/test_pipeline.py", "models", "planning/test_steps.py", "serving/test_program.py",
    "serving/test_calibration.py", "serving/test_folding.py", "serving/test_heat.py",
    "serving/test_onnx.py", "test_convert.py", "test_evaluate_input.py", "finetuning",
    "test_multilabel.py", "test_plan.py", "test_resume.py", "test_train.py",
    "training/test_features.py", "training/test_hooks.py", "training/test_optimizer.py",
    "training/test_patience.py", "training/test_precision.py", "training/test_sharding.py",
    "training/test_step.py", "weights/test_normalization.py", "weights/test_white_level.py",
    "benchmarks", "test_checks.py", "test_docs.py", "test_english.py", "test_structure.py",
    "launch/test_compute_engine.py", "launch/test_gke.py", "launch/test_tpu_vm.py",
    "weights/keras", "weights/test_hostile.py",
]  # fmt: skip


@pytest.hookimpl(tryfirst=True)  # before the markers choose
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; the order is otherwise that of the files."""
    here = Path(__file__).parent
    places = {here / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
    once = {here / name for name in ONCE}
    for item in items:
        if not once.isdisjoint([item.path, *item.path.parents]):
            item.add_marker("once")


def pytest_collection_finish() -> None:
    """Spares the garbage collector the modules and the tests themselves, which stay."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def nothing_of_tests():
    """Keeps the processes that compile plans from importing test modules that register something.

    Test modules are all imported when they are collected.
    """
    registry._OUTSIDE.clear()


@pytest.fixture(scope="session")
def digits() -> dict[str, Source]:
    """The embedded data set's two splits."""
    return {split: readers.open_split("optical_digits", split) for split in ("train", "test")}


@pytest.fixture
def small_config() -> ConfigDict:
    """A run of seconds: the digits at 8x8 through a narrow Xception."""
    return make_small_config()


def make_small_config() -> ConfigDict:
    config = config_lib.default()
    config.duration = "12 steps"
    config.model.width = 0.1
    config.model.middle_blocks = 0
    config.model.stem_stride = 1
    config.model.dropout = 0.2
    config.model.bn_virtual_batch = 8
    config.data.image_size = 8
    config.data.eval_preset, config.data.eval_crop = "area", 1.0
    config.data.batch_size = 64
    config.augment.shift = 1
    config.augment.flip = True
    # At a higher rate a ReLU or a pooling soon flips somewhere, and what was rounding is no more.
    config.optimizer.learning_rate = 0.001
    config.optimizer.reference_batch = 0
    # Unlike a cosine no other program for each duration: runs of any find each other's compiled.
    config.optimizer.schedule, config.optimizer.decay_rate = "staircase", 0.5
    config.optimizer.decay_every = "256 examples"
    config.optimizer.weight_decay = 1e-4
    config.ema.decay = 0.9
    config.mesh.data = 1
    config.eval.every = "6 steps"
    config.checkpoint.every = "2 steps"
    config.checkpoint.keep = 10
    config.log.every = "1 step"
    return config


@pytest.fixture(scope="session")
def flags() -> Callable[..., list[str]]:
    """A function of a workdir that gives the flags of a small run there, with some changes."""

    def make(workdir: Path, **changes: object) -> list[str]:
        small = config_lib.flatten(make_small_config())
        defaults = config_lib.flatten(config_lib.default())
        given = {name: small[name] for name in config_lib.differences(defaults, small)}
        given |= {name.replace("__", "."): value for name, value in changes.items()}
        overrides = [f"--config.{name}={value}" for name, value in given.items()]
        return ["--config=tests/default_config.py", f"--workdir={workdir}", *overrides]

    return make


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, flags) -> Path:
    """A run of twelve steps that nothing happened to, with its result and what it said beside."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    process = finish("main", *flags(workdir), "--json")
    (workdir / "result.json").write_text(json.dumps(result(process)))
    (workdir / "said.txt").write_text(process.stderr)
    return workdir


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that others may enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 400 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
