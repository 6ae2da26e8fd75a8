"""The trace of some steps: that it is there, of those steps, and of no others."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from xception_jax.training.telemetry.profiling import Profile


@pytest.mark.parametrize(("steps", "traced"), [((2, 3), [2, 3]), ((3, 9), [3, 4]), ((), [])])
def test_the_steps_are_traced(tmp_path, steps, traced):
    said = []
    double = jax.jit(lambda x: 2 * x)
    with Profile(tmp_path, steps, said.append) as profile:
        for step in (1, 2, 3, 4):  # the run may end before the last step to trace
            profile.before_step(step)
            result = double(jnp.ones(4))
            profile.after_step(step, None, {"result": result})
    files = list(tmp_path.rglob("*.trace.json.gz"))
    assert len(files) == len(said) == bool(steps)
    if steps:
        events = json.loads(gzip.decompress(files[0].read_bytes()))["traceEvents"]
        seen = {int(e["args"]["step_num"]) for e in events if e.get("name") == "train"}
        assert sorted(seen) == traced
        assert f"--logdir={tmp_path}/profile" in said[0]
