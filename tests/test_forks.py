"""A command that is forked says and does what one does that starts by itself."""

import pytest

from tests.processes import finish, on_devices


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("models", "--json"), 0),
        (("main", "--config=configs/digits.py", "--workdri=here"), 2),
        (("evaluate", "--workdir=nowhere"), 2),
    ],
)
def test_it_says_the_same_and_ends_with_the_same_code(words, code):
    forked, started = finish(*words), finish(*words, env={"NOT_OF_THESE_TESTS": "1"})
    assert forked.returncode == started.returncode == code
    assert (forked.stdout, forked.stderr) == (started.stdout, started.stderr)


def test_it_has_the_environment_that_is_asked_for(tmp_path):
    words = "main", "--config=configs/digits.py", f"--workdir={tmp_path / 'run'}"
    for devices, others in ((6, "60 or 66"), (5, "60 or 65")):
        refused = finish(*words, "--config.data.batch_size=64", env=on_devices(devices))
        assert refused.returncode == 2
        assert f"not divisible by the {devices} devices; use {others}" in refused.stderr
