"""The choice of settings: what follows from the data, the machine, the weights and the user."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.processes import ROOT
from xception_jax import config as config_lib
from xception_jax import recipes
from xception_jax.finetuning import choice, table
from xception_jax.finetuning.facts import DataFacts, MachineFacts, WeightsFacts
from xception_jax.training import preflight
from xception_jax.weights.tensors import abstract

DATA = DataFacts(423, 8, 40, 60, side=400)
GPU = MachineFacts("gpu", "H100", 1, 80 * 2**30, 400e12)
CPU = MachineFacts("cpu", "CPU of 2 cores", 1, 8 * 2**30, 90e9)
XCEPTION = WeightsFacts(
    "xception.keras", "xception", 299, "keras", 8_357_000_000, 1,
    blocks=tuple(f"block{i}" for i in range(1, 15)),
    flows=("entry_flow", "middle_flow", "exit_flow"),
)  # fmt: skip
INCEPTION = replace(
    XCEPTION, model="inception_v3", flows=(),
    blocks=("stem", *(f"mixed{i}" for i in range(11))),
)  # fmt: skip


def fields(data=DATA, machine=GPU, weights=XCEPTION, **given):
    given = {name.replace("__", "."): value for name, value in given.items()}
    return choice.choose(data, machine, weights, given).fields


@pytest.mark.parametrize("pictures", [1, 3, 50, 423, 5_000, 10**6])
@pytest.mark.parametrize("devices", [1, 3, 8])
@pytest.mark.parametrize("machine", [GPU, CPU])
@pytest.mark.parametrize("weights", [XCEPTION, INCEPTION])
def test_every_choice_is_a_config_that_can_train(pictures, devices, machine, weights):
    data = replace(DATA, train=pictures)
    machine = replace(machine, devices=devices, memory=machine.memory // devices)
    chosen = choice.choose(data, machine, weights)
    config = chosen.config()
    preflight.check_without_data(config, devices)
    preflight.check_lengths(config, pictures)
    assert config.model.name == weights.model
    assert 5 <= len(chosen.reasons) <= 11, "about ten lines"
    assert all(len(str(reason)) < 200 for reason in chosen.reasons)


def test_more_pictures_train_more_blocks():
    frozen = [fields(replace(DATA, train=n))["model.freeze"] for n in (40, 1000, 10_000, 10**6)]
    assert frozen == ["exit_flow", "block10", "entry_flow", None]
    blocks = [
        fields(replace(DATA, train=n), weights=INCEPTION)["model.freeze"]
        for n in (40, 1000, 10_000, 10**6)
    ]
    assert blocks == ["mixed10", "mixed7", "mixed2", None]


@pytest.mark.parametrize(
    ("side", "chosen"), [(28, 96), (96, 96), (97, 128), (280, 288), (298, 299), (4000, 299)]
)
def test_images_are_as_large_as_the_weights_want_or_as_the_pictures_are(side, chosen):
    assert fields(replace(DATA, side=side))["data.image_size"] == chosen


def test_images_are_as_large_as_the_weights_where_these_are_small():
    small = replace(XCEPTION, image_size=8)
    assert fields(weights=small)["data.image_size"] == 8


def test_what_would_take_too_long_freezes_more_and_then_shrinks():
    """1,600 pictures at 299 pixels: hours on two cores."""
    data = replace(DATA, train=1600)
    chosen = choice.choose(data, CPU, XCEPTION)
    assert chosen.fields["model.freeze"] == "exit_flow" or chosen.fields["data.image_size"] < 299
    assert chosen.seconds <= table.BUDGET_S + 16
    said = " ".join(map(str, chosen.reasons))
    assert "more would take about" in said
    assert "on 1 x CPU of 2 cores" in said
    usual = choice.choose(data, GPU, XCEPTION)
    assert (usual.fields["model.freeze"], usual.fields["data.image_size"]) == ("block10", 299)
    assert "would take" not in " ".join(map(str, usual.reasons))
    hopeless = choice.choose(replace(DATA, train=10**7), CPU, XCEPTION)
    assert hopeless.fields["model.freeze"] == "exit_flow", "the cheapest"
    assert hopeless.fields["data.image_size"] == 96


def test_a_field_that_is_given_stays_and_others_follow():
    chosen = fields(model__freeze="entry_flow", data__image_size=150, data__batch_size=64)
    assert (chosen["model.freeze"], chosen["data.image_size"]) == ("entry_flow", 150)
    assert chosen["optimizer.learning_rate"] == next(
        stage.learning_rate for stage in table.STAGES if stage.flow == "entry_flow"
    )
    assert (chosen["data.batch_size"], chosen["model.bn_virtual_batch"]) == (64, 64)
    said = [str(one) for one in choice.choose(DATA, GPU, XCEPTION, {"duration": "7 steps"}).reasons]
    assert not any("duration" in line for line in said), "the user knows"
    assert fields(duration="7 steps")["duration"] == "7 steps"
    everything = fields(replace(DATA, train=100), model__freeze=None)
    assert everything["model.freeze"] is None


@pytest.mark.parametrize(
    ("freeze", "like"),
    [(None, 0.0), ("block2", 0.0), ("entry_flow", 1 / 3), ("block6", 1 / 3), ("block10", 5 / 7),
     ("block12", 6 / 7), ("middle_flow", 6 / 7), ("block14", 1.0), ("exit_flow", 1.0)],
)  # fmt: skip
def test_a_given_block_has_the_rate_of_the_stage_that_freezes_no_more(freeze, like):
    [stage] = [stage for stage in table.STAGES if stage.share == like]
    assert fields(model__freeze=freeze)["optimizer.learning_rate"] == stage.learning_rate


def test_something_is_trained_of_a_model_of_two_blocks():
    plain = replace(XCEPTION, model="plain", flows=(), blocks=("conv1", "conv2"))
    assert fields(weights=plain)["model.freeze"] == "conv1"
    few = replace(DATA, train=40)
    assert fields(few, weights=plain)["model.freeze"] == "conv2", "the classifier alone"


@pytest.mark.parametrize("name", ["xception", "xception41", "xception65", "xception71"])
def test_the_recipe_freezes_a_part_of_each_model_of_the_family(name):
    for pictures in ("40", "1000", "5000"):
        config = recipes.load("finetune", pictures)
        built = {"freeze": config.model.freeze}
        network = abstract(name, 2, built)
        assert 0 < len(network.frozen()) < len(dict(network.blocks())) + 1
    assert recipes.load("finetune").data.eval_preset is None, "as the weights expect it"


def test_a_frozen_part_is_computed_once_where_the_classifier_alone_is_trained():
    few = replace(DATA, train=40)
    chosen = choice.choose(few, GPU, XCEPTION)
    most = table.FROZEN_DRAWS[0]
    assert chosen.fields["data.frozen_draws"] == most
    assert f"data.frozen_draws={most}" in " ".join(map(str, chosen.reasons))
    each_time = choice.choose(few, GPU, XCEPTION, {"data.frozen_draws": 0})
    assert each_time.seconds > 5 * chosen.seconds
    assert fields(few, augment__mixup=0.2)["data.frozen_draws"] == 0, "it mixes other pairs"
    assert fields(few, data__repeats=2)["data.frozen_draws"] == 0
    assert fields(few, model__freeze="block3")["data.frozen_draws"] == 0
    assert fields()["data.frozen_draws"] == 0, "a GPU is faster than a disk"


def test_a_cpu_computes_each_frozen_part_once_as_time_and_room_allow():
    def draws(train, side=96, speed=90e9):
        chosen = fields(replace(DATA, train=train, side=side), replace(CPU, speed=speed))
        return chosen["model.freeze"], chosen["data.frozen_draws"]

    most, fewer, least = table.FROZEN_DRAWS
    assert draws(500) == ("block10", most)
    assert draws(500, speed=11e9) == ("block10", fewer), "by time"
    assert draws(500, side=299, speed=1e15) == ("block10", most)
    assert draws(1500, side=299, speed=1e15) == ("block10", least), "by their bytes"


def test_an_evaluation_resizes_smoothly_where_the_weights_take_nearest_pixels():
    assert (fields()["data.eval_preset"], fields()["data.eval_crop"]) == ("area", 1.0)
    assert "data.eval_preset=area resizes images smoothly" in str(
        choice.choose(DATA, GPU, XCEPTION).reasons[0]
    )
    assert fields(data__eval_preset="keras").keys() & table.SMOOTH.keys() == {"data.eval_preset"}
    bicubic = replace(XCEPTION, preset="timm")
    assert not fields(weights=bicubic).keys() & table.SMOOTH.keys(), "the weights' own"


def test_a_batch_that_does_not_fit_is_split():
    little = replace(GPU, memory=2 * 2**30)
    data = replace(DATA, train=10**6)
    chosen = choice.choose(data, little, XCEPTION)
    assert 0 < chosen.fields["optimizer.microbatch"] <= 32
    assert any("optimizer.microbatch=" in str(reason) for reason in chosen.reasons)
    assert fields(data)["optimizer.microbatch"] == 0


def test_classes_of_other_sizes_are_told_and_not_changed():
    chosen = choice.choose(replace(DATA, smallest=10, largest=50), GPU, XCEPTION)
    [line] = [str(one) for one in chosen.reasons if "balanced" in str(one)]
    assert "data.balanced=False: the largest class has 50 pictures, the smallest 10" in line
    assert "data.balanced" not in chosen.fields
    assert not any("balanced" in str(one) for one in choice.choose(DATA, GPU, XCEPTION).reasons)


def test_the_recipe_has_the_same_values():
    data = replace(DATA, train=5000, side=299)
    flat = config_lib.flatten(recipes.load("finetune", "5000"))
    chosen = choice.choose(data, GPU, XCEPTION).fields
    own = {"data.image_size", "data.eval_preset", "data.eval_crop", "eval.patience"}
    assert {name: flat[name] for name in chosen.keys() - own} == {
        name: chosen[name] for name in chosen.keys() - own
    }
    assert recipes.load("finetune").duration == recipes.load("finetune", "1000").duration


def test_the_choice_waits_for_no_jax():
    code = (
        "import json, sys\n"
        "from xception_jax.finetuning import choice\n"
        "choice.typical(10)\n"
        "print(json.dumps(sorted({'jax', 'flax', 'grain'} & set(sys.modules))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert json.loads(done.stdout) == []
