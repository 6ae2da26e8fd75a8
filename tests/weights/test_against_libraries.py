"""Weights through Keras' and timm's own files and back: bit-identical, and read by them."""

import numpy as np
import pytest

from tests.processes import finish, result
from xception_jax import models

pytestmark = [
    pytest.mark.slow,
    # Keras 3.15 reads its own variables in a way that NumPy 2 deprecates.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def convert(source, target, path, output, *flags):
    return result(finish("convert", f"--from={source}", f"--to={target}", f"--input={path}",
                         f"--output={output}", "--json", *flags))  # fmt: skip


def import_timm():
    """timm, also beside a torchvision of another build than torch's."""
    pytest.importorskip("torch")
    from benchmarks.peers import torchvision_operators

    torchvision_operators.declare()
    return pytest.importorskip("timm")


def randomized(weights, seed):
    rng = np.random.default_rng(seed)
    return [rng.uniform(0.5, 1.5, w.shape).astype(np.float32) for w in weights]


def assert_same(one, two):
    assert len(one) == len(two)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_crops_are_those_of_timms_models():
    """Of the weights that timm takes by itself; of xception65 it has others with another crop."""
    timm = import_timm().models
    for theirs in models.elsewhere("timm").values():
        assert theirs.crop == timm.get_pretrained_cfg(theirs.name).crop_pct


@pytest.mark.parametrize(
    ("name", "make", "top"),
    [
        ("xception", "Xception", True),
        pytest.param("inception_v3", "InceptionV3", False, marks=pytest.mark.long),
        pytest.param("xception", "Xception", False, marks=pytest.mark.long),
        pytest.param("inception_v3", "InceptionV3", True, marks=pytest.mark.long),
    ],
)
def test_keras_and_back(name, make, top, tmp_path):
    keras = pytest.importorskip("keras")
    from keras.src.legacy.saving import legacy_h5_format
    from safetensors.numpy import load_file

    def create():
        more = {"classes": 7} if top else {"include_top": False}
        return getattr(keras.applications, make)(weights=None, **more)

    theirs = create()
    theirs.set_weights(randomized(theirs.get_weights(), 0))
    paths = [tmp_path / file for file in ("a.weights.h5", "b.keras", "c.h5", "d.h5")]
    theirs.save_weights(paths[0])
    theirs.save(paths[1])
    theirs.save(paths[2])
    import h5py

    with h5py.File(paths[3], "w") as file:  # as the published files: weights alone
        legacy_h5_format.save_weights_to_hdf5_group(file, theirs)
    for path in paths:
        ours = tmp_path / f"{path.name}.safetensors"
        said = convert("keras", "xception_jax", path, ours, f"--model={name}")
        assert said["num_classes"] == (7 if top else None)
        found = load_file(ours)
        if path is paths[0]:
            first = found
        assert found.keys() == first.keys()
        assert all(np.array_equal(found[name], first[name]) for name in first)
    # What is the same in all four goes back in both of Keras' formats.
    for ending in (".weights.h5", ".h5"):
        back = tmp_path / f"back{ending}"
        assert convert("xception_jax", "keras", ours, back)["notes"] == []
        again = create()
        again.load_weights(back)
        assert_same(theirs.get_weights(), again.get_weights())


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("inception_v3", 7),
        ("legacy_xception", 0),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                ("legacy_xception", 7),
                ("xception41", 7),
                ("xception65", 7),
                ("xception71", 7),
                ("xception65p", 7),
                ("xception41p", 7),
                ("xception41", 0),
            )
        ),
    ],
)
def test_timm_and_back(name, classes, tmp_path):
    torch = pytest.importorskip("torch")
    timm = import_timm()
    from safetensors.torch import save_file

    theirs = timm.create_model(name, num_classes=classes).eval()
    state = theirs.state_dict()
    floats = [key for key, value in state.items() if value.is_floating_point()]
    drawn = randomized([state[key] for key in floats], 0)
    state |= {key: torch.from_numpy(value) for key, value in zip(floats, drawn, strict=True)}
    save_file(state, tmp_path / "a.safetensors")
    wrapped = {f"module.{key}": value for key, value in state.items()}
    torch.save({"state_dict_ema": wrapped, "state_dict": {}, "epoch": 3}, tmp_path / "b.pth")
    for kind, back in (("a.safetensors", "back.pth"), ("b.pth", "back.safetensors")):
        ours = tmp_path / f"ours-{kind}.safetensors"
        convert("timm", "xception_jax", tmp_path / kind, ours, f"--model={name}")
        assert convert("xception_jax", "timm", ours, tmp_path / back)["notes"] == []
        again = timm.create_model(name, num_classes=classes, checkpoint_path=str(tmp_path / back))
        assert_same(drawn, [again.state_dict()[key].numpy() for key in floats])


def test_the_auxiliary_tower_is_left_out_and_named(tmp_path):
    timm = import_timm()
    from safetensors.torch import save_file

    theirs = timm.create_model("inception_v3", aux_logits=True)
    save_file(theirs.state_dict(), tmp_path / "a.safetensors")
    said = convert("timm", "xception_jax", tmp_path / "a.safetensors", tmp_path / "b.safetensors",
                   "--model=inception_v3")  # fmt: skip
    [note] = said["notes"]
    assert "not used for the logits" in note
    assert "AuxLogits." in note
