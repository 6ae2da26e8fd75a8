"""Fields changed on the command line: every one that may be None is set and unset."""

import importlib
import re

import pytest

from configs import digits
from tests.processes import ROOT, finish
from xception_jax import config as config_lib
from xception_jax import models, train
from xception_jax.config import overrides
from xception_jax.errors import UsageError
from xception_jax.training import preflight

OPTIONAL = {name: field for name, field in config_lib.SCHEMA.items() if field.default is None}

# A value of each type, as text, and a text that is none. Text without choices takes any.
VALUES = {int: ("1", 1), float: ("0.5", 0.5), bool: ("false", False), tuple: ("(1, 2)", (1, 2))}
NO_VALUES = {int: "1.5", float: "half", bool: "perhaps", tuple: "(1, 2"}


def value_of(field):
    if field.choices:
        return field.choices[0], field.choices[0]
    if field.length:
        return str((1,) * field.length), (1,) * field.length
    return VALUES.get(field.kind, ("a", "a"))


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_field_that_may_be_none_is_set_and_unset(name):
    text, value = value_of(OPTIONAL[name])
    config = config_lib.default()
    for argument, expected in ((text, value), ("None", None), (text, value)):
        rest, changes = overrides.take(["main", f"--config.{name}={argument}", "--workdir=w"])
        overrides.apply(config, changes)
        assert rest == ["main", "--workdir=w"]
        assert config_lib.flatten(config)[name] == expected
    config_lib.check_fields(config)
    _, changes = overrides.take([f"--config.{name}=none"])
    assert changes == {name: "none" if "none" in OPTIONAL[name].choices else None}


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_config_file_sets_and_unsets_it_too(name):
    _, value = value_of(OPTIONAL[name])
    config = config_lib.default()
    *sections, last = name.split(".")
    section = config[sections[0]]
    section[last] = value
    assert config_lib.flatten(config)[name] == value
    section[last] = None
    flat = config_lib.flatten(config)
    assert flat[name] is None
    config_lib.check_fields(config)
    assert config_lib.flatten(config_lib.from_flat(flat))[name] is None
    wrong = (1,) if OPTIONAL[name].kind is not tuple else 1
    with pytest.raises(TypeError):
        section[last] = wrong


@pytest.mark.parametrize("name", [n for n, f in OPTIONAL.items() if f.kind in NO_VALUES])
def test_a_value_of_another_type_is_refused(name):
    text = NO_VALUES[OPTIONAL[name].kind]
    with pytest.raises(UsageError) as caught:
        overrides.take([f"--config.{name}={text}"])
    assert str(caught.value).startswith(f"config.{name} is {text!r}; it takes ")
    assert str(caught.value).endswith(", or None")


@pytest.mark.parametrize("name", [n for n, f in config_lib.SCHEMA.items() if f.default is not None])
def test_no_other_field_may_be_none(name):
    assert config_lib.SCHEMA[name].check(None).startswith("is None; it takes ")
    if config_lib.SCHEMA[name].kind in (int, float, bool):
        with pytest.raises(UsageError, match=rf"config\.{name} is 'None'; it takes "):
            overrides.take([f"--config.{name}=None"])


def test_forms_of_a_change():
    line = (
        "main --config=f.py --config.seed 3 --config.seed=4 --config.augment.flip "
        "--noconfig.log.tensorboard --config.data.mix=a --config.data.mix=b --json"
    )
    rest, changes = overrides.take(line.split())
    assert rest == ["main", "--config=f.py", "--json"]
    assert changes == {
        "seed": 4, "augment.flip": True, "log.tensorboard": False, "data.mix": ("a", "b"),
    }  # fmt: skip
    with pytest.raises(UsageError, match="needs a value: it takes a whole number"):
        overrides.take(["--config.seed"])


@pytest.mark.parametrize("name", models.names())
def test_any_model_trains_by_its_name_with_what_the_refusals_say(name):
    """From `configs/digits.py`, made for Xception; `train.build_run` does all but compile."""
    given = [f"--config.model.name={name}"]
    for _ in range(3):
        config = digits.get_config()
        overrides.apply(config, overrides.take(given)[1])
        config.mesh.data = 1
        try:
            preflight.validate(config)
            train.build_run(config_lib.resolve(config))
            break
        except UsageError as error:
            given += re.findall(r"--config\.\S+", str(error))
    else:
        pytest.fail(f"refused with {given}")
    assert len(given) == (3 if name == "inception_v3" else 1)


def test_a_refusal_says_which_line_of_the_config_file_set_the_field():
    process = finish(
        "main", "--config=configs/digits.py", "--workdir=w", "--config.model.name=inception_v3",
        "--config.model.scan_middle",
    )  # fmt: skip
    assert process.returncode == 2
    [line] = process.stderr.splitlines()
    lines = (ROOT / "configs/digits.py").read_text(encoding="utf-8").splitlines()
    number = 1 + lines.index("    config.model.middle_blocks = 2")
    assert line == (
        "error: inception_v3 does not take config.model.middle_blocks, config.model.scan_middle; "
        "add --config.model.middle_blocks=None --config.model.scan_middle=None "
        f"(configs/digits.py:{number} sets model.middle_blocks)"
    )


def test_lines_of_a_config_that_another_one_starts_from():
    importlib.import_module("configs.inception_v3")  # as the command does
    message = "config.data.image_size and config.optimizer.weight_decay and config.seed"
    told = overrides.told_where(message, str(ROOT / "configs/inception_v3.py"), [])
    assert re.fullmatch(
        re.escape(message)
        + r" \(\S+/imagenet\.py:\d+ sets data\.image_size; "
        + r"\S+/inception_v3\.py:\d+ sets optimizer\.weight_decay\)",
        told,
    )
    assert overrides.told_where(message, "nowhere.py", []) == message


def test_a_field_with_a_digit_is_told_where_it_is_set(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def get_config():\n    c.optimizer.beta1 = 2.0\n")
    message = "config.optimizer.beta1 is 2.0; it takes at least 0.0 and at most 1.0"
    told = overrides.told_where(message, str(path), [])
    assert told == f"{message} ({path}:2 sets optimizer.beta1)"
