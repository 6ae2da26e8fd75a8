"""The benchmark's gate and its command line; libtpu is not needed."""

import pytest

from benchmarks import tpu_compile

ROW = {
    "chips": "v5e:2x2",
    "blocks": "short",
    "batch": 64,
    "side": 79,
    "microbatch": 0,
    "overrides": "",
    "part": "all",
    "larger_mcycles": 10.0,
    "temporary_gb": 1.0,
    "all_reduces": 3,
    "real_copies": 0,
    "without_schedule": 10,
}
COMMITTED = [{name: str(value) for name, value in ROW.items()}]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({}, None),
        ({"larger_mcycles": 10.29, "temporary_gb": 1.04}, None),
        ({"larger_mcycles": 5.0, "real_copies": 0}, None),
        ({"larger_mcycles": 10.4}, "larger_mcycles is 10.4; 10 is committed"),
        ({"temporary_gb": 1.06}, "temporary_gb is 1.06"),
        ({"all_reduces": 4}, "all_reduces is 4; 3 is committed"),
        ({"real_copies": 1}, "real_copies is 1; 0 is committed"),
        ({"without_schedule": 12}, "without_schedule is 12"),
        ({"batch": 128}, "no committed figures"),
    ],
)
def test_check_names_the_figure_that_is_worse(changes, complaint):
    found = tpu_compile.worse({**ROW, **changes}, COMMITTED)
    assert found is None if complaint is None else complaint in found


def test_a_wrong_argument_is_one_line_and_exit_code_2(capsys, monkeypatch):
    monkeypatch.setattr(tpu_compile.compiler, "check_installed", lambda: None)
    assert tpu_compile.main(["--chips", "v9"]) == 2
    assert "KIND:SHAPE" in capsys.readouterr().err


def test_without_libtpu_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(tpu_compile.compiler.util, "find_spec", lambda name: None)
    assert tpu_compile.main([]) == 2
    error = capsys.readouterr().err
    assert "pip install 'xception_jax[plan]'" in error
    assert error.count("\n") == 1
