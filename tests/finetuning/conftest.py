"""Data and weights of tiny fine-tunings."""

from pathlib import Path

import pytest

from tests.finetuning.pictures import write_data, write_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "a.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory, digits) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "digits", digits)
