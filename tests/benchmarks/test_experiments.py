"""The paper's experiments: every variant is a valid config, and the command runs them."""

import sys

import pytest

from benchmarks import experiments, record
from configs import experiments as configs
from configs import imagenet, inception_v3
from tests.processes import finish
from xception_jax import config as config_lib
from xception_jax import models
from xception_jax.errors import UsageError


@pytest.mark.parametrize("variant", configs.names())
@pytest.mark.parametrize("scale", ["", "/digits"])
def test_a_variant_changes_what_it_says_and_its_model_takes_it(variant, scale):
    config = configs.get_config(variant + scale)
    config_lib.check_fields(config)
    assert set(config_lib.model_overrides(config)) <= set(models.overrides(config.model.name))
    experiment, which = variant.split("/")
    changes = configs.EXPERIMENTS[experiment][which]
    found = config_lib.flatten(config)
    scaled = {"model.fc_units", "optimizer.weight_decay"} if scale else set()
    assert all(found[name] == value for name, value in changes.items() if name not in scaled)


def test_the_yardstick_differs_from_xception_by_name_and_weight_decay():
    ours, theirs = (config_lib.flatten(c.get_config()) for c in (imagenet, inception_v3))
    assert config_lib.differences(ours, theirs) == ["model.name", "optimizer.weight_decay"]
    assert config_lib.flatten(configs.get_config("architecture/inception_v3")) == theirs


def test_unknown_variants_suggest_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'residual/with'"):
        configs.get_config("residual/wiht")
    flags = "--config=configs/experiments.py:residual/wiht", "--workdir=nowhere"
    process = finish("main", *flags)
    assert process.returncode == 2
    assert "did you mean 'residual/with'" in process.stderr


@pytest.mark.slow
def test_the_command_trains_every_variant_and_draws_it(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(
        sys, "argv",
        [
            "benchmarks/experiments.py", "residual", "--seeds=2", f"--output={tmp_path}/out.csv",
            "--override", "duration='4 steps'", "eval.every='2 steps'", "data.batch_size=8",
            "model.width=0.05", "model.middle_blocks=1", "mesh.data=1",
        ],
    )  # fmt: skip
    experiments.main()
    rows = record.read(tmp_path / "out.csv")[1]
    expected = [(v, str(s), str(n)) for s in (0, 1) for v in ("with", "without") for n in (2, 4)]
    assert [(row["variant"], row["seed"], row["step"]) for row in rows] == expected
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert "without        top-1" in capsys.readouterr().out
