"""The command that measures the input, for an instant, on the pictures that it makes."""

import cv2
import numpy as np
import pytest

from benchmarks import record
from tests.benchmarks.test_step import run
from xception_jax.data.render import turbojpeg


@pytest.mark.slow
@pytest.mark.skipif(turbojpeg.library() is None, reason="needs libturbojpeg 3")
def test_a_table_of_our_input_and_the_floor_under_it(tmp_path):
    output, folder = tmp_path / "out" / "input.csv", tmp_path / "pictures"
    done = run(
        "input", "--peers", "ours", "floor", "--rounds", 2, "--seconds", 0.1, "--side", 64,
        "--batch", 16, "--pictures", folder, "--output", output,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    files = sorted(folder.glob("train/class*/*.jpg"))
    assert len(files) == 256
    assert cv2.imread(str(files[0])).shape == (375, 500, 3)
    assert np.mean([file.stat().st_size for file in files]) == pytest.approx(110_000, rel=0.1)

    notes, rows = record.read(output)
    assert (notes["platform"], notes["cores"]) == ("cpu", "1")
    assert {"ours ran", "floor ran"} < notes.keys()
    spread = ("median", "min", "max")
    figures = [
        *(f"{clock}_ms_per_image_{name}" for clock in ("cpu", "wall") for name in spread),
        "images_per_second",
        *(f"ratio_{clock}{name}" for clock in ("cpu", "wall") for name in ("", "_min", "_max")),
    ]
    assert [row["contender"] for row in rows] == ["ours", "floor"]
    for row in rows:
        assert list(row) == ["contender", "side", "batch", *figures, "rounds", "peak_memory_mib"]
        assert (row["side"], row["batch"], row["rounds"]) == ("64", "16", "2")
        assert all(float(row[name]) > 0 for name in figures)
        assert float(row["peak_memory_mib"]) > 100
        assert f"{row['cpu_ms_per_image_median']} CPU-ms an image" in done.stdout
    assert float(rows[0]["ratio_cpu"]) == float(rows[0]["ratio_wall"]) == 1
