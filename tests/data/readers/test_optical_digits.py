"""The embedded data set against scikit-learn's copy of it."""

import subprocess
import sys

import cv2
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def test_images_labels_and_split_are_scikit_learns(digits):
    reference = load_digits()
    train, test = train_test_split(
        np.arange(1797), test_size=360, stratify=reference.target, random_state=0
    )
    for split, indices in (("train", train), ("test", test)):
        source = digits[split]
        assert len(source) == len(indices)
        found = set()
        for i in range(len(source)):
            encoded, label, _ = source[i]
            image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
            found.add((label, np.round(image / (255 / 16)).astype(np.uint8).tobytes()))
        expected = {
            (int(reference.target[i]), reference.images[i].astype(np.uint8).tobytes())
            for i in indices
        }
        assert found == expected


def test_the_split_is_stratified(digits):
    labels = {
        name: [source[i].label for i in range(len(source))] for name, source in digits.items()
    }
    shares = {name: np.bincount(values) / len(values) for name, values in labels.items()}
    np.testing.assert_allclose(shares["train"], shares["test"], atol=0.002)


def test_several_processes_may_prepare_it_at_once(tmp_path):
    """As the processes of a run do on a machine that has no data yet."""
    barrier = tmp_path / "go"
    code = (
        "import sys, time, pathlib\n"
        "from xception_jax.data import readers\n"
        "print('ready', flush=True)\n"
        "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.001)\n"
        "print(len(readers.open_split('optical_digits', 'test', sys.argv[1])))\n"
    )
    command = [sys.executable, "-c", code, tmp_path / "data", barrier]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    barrier.touch()
    assert [process.communicate()[0] for process in running] == ["360\n"] * 3
