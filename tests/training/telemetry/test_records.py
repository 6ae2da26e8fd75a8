"""The files of a run's figures, as one sees them through a bucket that is mounted as a folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.processes import ROOT
from xception_jax.training.telemetry.records import Records, read


class Bucket:
    """What has reached a bucket: gcsfuse uploads a file when its writer closes it.

    The files are those of this process, so whether one is open to be written is seen in /proc.
    """

    def __init__(self, folder: Path, copy: Path):
        self._folder, self._copy = folder, copy
        copy.mkdir()

    def sync(self) -> None:
        for path in self._folder.iterdir():
            if not self._written(path):
                (self._copy / path.name).write_bytes(path.read_bytes())

    def _written(self, path: Path) -> bool:
        for fd in Path("/proc/self/fd").iterdir():
            try:
                if os.path.samefile(fd, path):
                    flags = Path(f"/proc/self/fdinfo/{fd.name}").read_text().split("flags:")[1]
                    return int(flags.split()[0], 8) & os.O_ACCMODE != os.O_RDONLY
            except FileNotFoundError:
                continue
        return False

    def steps(self) -> list[int]:
        return [record["step"] for record in read(self._copy)]

    def events(self) -> list[int]:
        found = EventAccumulator(str(self._copy)).Reload()
        return [e.step for e in found.Scalars("train/loss")] if found.Tags()["scalars"] else []


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("seconds_a_step", [0.5, 7, 45, 200])
def test_a_machine_that_vanishes_takes_a_minute_of_figures_along_at_most(tmp_path, seconds_a_step):
    now, written = [1000.0], {}
    (tmp_path / "run").mkdir()
    bucket = Bucket(tmp_path / "run", tmp_path / "bucket")
    records = Records(tmp_path / "run", 0, clock=lambda: now[0])
    for step in range(1, 60):
        if step % 3 == 0:
            records.write("train", step, {"loss": float(step)})
            written[step] = now[0]
            bucket.sync()
        if step % 15 == 0:  # an evaluation of five minutes
            records.flush()
            bucket.sync()
            now[0] += 300
            assert set(bucket.steps()) >= {s for s, at in written.items() if at < now[0] - 60}
        now[0] += seconds_a_step
        assert set(bucket.steps()) >= {s for s, at in written.items() if at < now[0] - 60}
        records.tick()
        bucket.sync()
    assert set(bucket.events()) >= {s for s, at in written.items() if at < now[0] - 60}
    records.close()
    bucket.sync()
    assert bucket.steps() == bucket.events() == list(written)


def test_others_on_the_machine_read_a_record_at_once(tmp_path):
    records = Records(tmp_path, 0, clock=lambda: 0.0)
    records.write("eval", 4, {"loss": 2.5, "top1": 0.25, "examples": 36})
    [record] = read(tmp_path)
    assert record.pop("time") > 0
    assert record == {"kind": "eval", "step": 4, "loss": 2.5, "top1": 0.25, "examples": 36}
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("eval/top1")] == [(4, 0.25)]
    records.close()


def test_records_of_old_runs_with_top5_are_read_and_half_a_line_is_none(tmp_path):
    old = {"kind": "eval", "step": 4, "time": 1.0, "top1": 0.5, "top5": 1.0, "loss": 1.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(old) + '\n{"kind": "train", "st')
    assert read(tmp_path) == [old]
    assert read(tmp_path / "nowhere") == []


def test_torch_is_not_imported_where_it_is_installed(tmp_path):
    """As tensorboardX would; all of that can still be imported afterwards."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("Tensor = object\n")
    code = (
        "import sys\n"
        "import xception_jax.training.telemetry.records\n"
        "assert 'torch' not in sys.modules\n"
        "from tensorboardX import SummaryWriter\n"
        "assert 'torch' in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
