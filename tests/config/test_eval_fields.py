"""Sets of evaluation, further metrics, and what is best: how the fields are read."""

import math

import pytest

from xception_jax import config as config_lib
from xception_jax.config import Best, EvalSet
from xception_jax.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("validation", EvalSet("validation", "validation")),
        ("part=train[:10%]", EvalSet("part", "train[:10%]")),
        ("real=imagenet2012_real:1.0.0@validation",
         EvalSet("real", "validation", "imagenet2012_real:1.0.0")),
        ("mine=folder:/data/a=b@home@test", EvalSet("mine", "test", "folder:/data/a=b@home")),
    ],
)  # fmt: skip
def test_a_set_is_a_split_or_a_named_one(text, expected):
    config = config_lib.default()
    config.eval.also = (text,)
    assert config_lib.eval_sets(config) == [expected]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (("train[:10%]",), "SPLIT, NAME=SPLIT or NAME=DATASET@SPLIT"),
        (("a/b=train",), "SPLIT, NAME=SPLIT or NAME=DATASET@SPLIT"),
        (("mnist@test",), "SPLIT, NAME=SPLIT or NAME=DATASET@SPLIT"),
        (("a=",), "SPLIT, NAME=SPLIT or NAME=DATASET@SPLIT"),
        (("a=train", "a=test"), "two sets with the name 'a'"),
    ],
)
def test_what_names_no_set_is_refused(texts, said):
    config = config_lib.default()
    config.eval.also = texts
    with pytest.raises(UsageError, match=said):
        config_lib.eval_sets(config)


def test_metrics_are_of_all_sets_or_of_one():
    config = config_lib.default()
    config.eval.also = ("train", "real=other@test")
    config.eval.metrics = ("one", "real/two", "one")
    found = {name: config_lib.eval_metrics(config, name) for name in ("", "train", "real")}
    assert found == {"": ("one",), "train": ("one",), "real": ("one", "two")}
    config.eval.metrics = ("reel/two",)
    with pytest.raises(UsageError, match=r"'reel/two', but config.eval.also has no set 'reel'"):
        config_lib.eval_metrics(config)


RESULTS = [
    {"top1": 0.5, "loss": 1.0},
    {"top1": 0.7, "loss": 2.0, "real/top1": 0.6, "real/loss": 3.0},
    {"top1": 0.7, "loss": 1.5, "real/top1": 0.4, "real/loss": 2.0},
]


@pytest.mark.parametrize(
    ("text", "best"),
    [
        ("auto", 2),  # of equals the lowest loss
        ("top1", 2),
        ("top1:min", 0),
        ("loss", 0),
        ("loss:min", 0),
        ("loss:max", 1),
        ("real/top1", 1),
        ("real/loss", 2),
        ("real/loss:max", 1),
    ],
)
def test_which_is_best(text, best):
    """One that lacks the metric, of before the field was set, is not."""
    criterion = Best.parse(text)
    rated = list(filter(criterion.is_in, RESULTS))
    assert max(rated, key=criterion.quality) is RESULTS[best]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("text", ["odd", "odd:min", "odd:max"])
def test_what_is_not_finite_is_never_the_best(text, value):
    assert not Best.parse(text).is_in({"top1": 0.9, "loss": 0.1, "odd": value})


def test_of_several_labels_map_decides():
    found = [{"map": 0.1, "top1": 1.0, "loss": 1.0}, {"map": 0.2, "loss": 2.0}]
    assert max(found, key=Best().quality) is found[1]
    assert not Best("map").is_in({"top1": 1.0, "loss": 1.0})


@pytest.mark.parametrize("text", ["top1:up", "loss:", "a:b:min"])
def test_a_direction_is_min_or_max(text):
    with pytest.raises(UsageError, match="METRIC:min or METRIC:max"):
        Best.parse(text)


def test_a_config_of_before_evaluates_as_it_did():
    flat = config_lib.flatten(config_lib.default())
    new = ("eval.also", "eval.metrics", "eval.best", "log.writers")
    config = config_lib.from_flat({name: flat[name] for name in flat if name not in new})
    assert (config_lib.eval_sets(config), config_lib.eval_metrics(config)) == ([], ())
    assert Best.parse(config.eval.best) == Best()
    assert config_lib.log_writers(config) == ("tensorboard",)
