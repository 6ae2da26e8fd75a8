"""Files that torch and timm write themselves, read without them."""

import argparse
import collections
import datetime

import numpy as np
import pytest

from tests.models import agreement
from tests.weights import pickled
from tests.weights.test_against_libraries import import_timm
from xception_jax import weights
from xception_jax.errors import UsageError
from xception_jax.weights import pretrained
from xception_jax.weights.tensors import abstract
from xception_jax.weights.timm import files as timm_files
from xception_jax.weights.timm import torch_files

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")

READ = ("plain", "transposed", "part", "parameter", "gradient", "attributes", "bfloat16",
        "float16", "float64", "whole", "scalar", "empty")  # fmt: skip
REFUSED = {
    "sparse": "is sparse",
    "compressed": "is sparse",
    "quantised": "is quantised",
    "meta": r"is without data \(on the device meta\)",
    "expanded": "repeats stored numbers",
    "negated": "is a negated or conjugated view",
}


def tensors():
    plain = torch.arange(24.0).reshape(4, 6) + 0.3
    found = {
        "plain": plain,
        "transposed": plain.t(),
        "part": plain[1:3, 2:4],
        "parameter": torch.nn.Parameter(plain * 2),
        "gradient": plain.clone().requires_grad_(),
        "attributes": plain.clone(),
        "bfloat16": plain.bfloat16(),
        "float16": plain.half(),
        "float64": plain.double() / 3,
        "whole": torch.arange(3),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "sparse": plain.to_sparse(),
        "compressed": plain.to_sparse_csr(),
        "quantised": torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
        "meta": plain.to("meta"),
        "expanded": plain.expand(3, 4, 6),
        "negated": torch._neg_view(plain),
    }
    found["attributes"].foo = 3
    return found


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning", "ignore:Sparse CSR:UserWarning")
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_writes(zipped, tmp_path):
    """Of every kind, in both of its formats; what is read is what torch.load reads."""
    state = collections.OrderedDict(tensors())
    whole = {
        "state_dict": state, "metric": np.float64(3.5), "args": argparse.Namespace(x=1),
        "array": np.arange(3), "path": tmp_path, "range": range(3), "last": collections.deque([1]),
        "when": datetime.datetime.now(datetime.UTC), "took": datetime.timedelta(1), "long": 2**70,
        "version": torch.__version__,
    }  # fmt: skip
    torch.save(whole, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    held, tensor = torch_files.read(tmp_path / "a.pth")
    for name in READ:
        found = np.asarray(tensor(name, held["state_dict"][name]))
        expected = state[name].detach()
        assert found.shape == tuple(expected.shape), name
        assert found.dtype.name == str(expected.dtype).removeprefix("torch."), name
        np.testing.assert_array_equal(found.astype(np.float64), expected.double().numpy())
    for name, said in REFUSED.items():
        with pytest.raises(UsageError, match=f"a.pth: {name} {said}"):
            tensor(name, held["state_dict"][name])


def test_torch_reads_the_files_that_tests_make(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float32([1, 2])}
    for path in (
        pickled.zipped(tmp_path / "a.pth", *pickled.state(arrays)),
        pickled.legacy(tmp_path / "b.pth", *pickled.state(arrays, (None,))),
    ):
        held = torch.load(path, weights_only=True)
        for name, array in arrays.items():
            np.testing.assert_array_equal(held[name].numpy(), array)


def randomized(model, name):
    rng = np.random.default_rng(0)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            shape = module.weight.shape
            drawn = agreement.kernel(rng, shape, int(np.prod(shape[1:])), name)
            module.weight.data = torch.from_numpy(drawn)
    return model


def test_grey_images_have_timms_logits(tmp_path):
    """Of a model with `in_chans=1`."""
    timm = import_timm()
    name = "legacy_xception"
    theirs = randomized(timm.create_model(name, in_chans=1, num_classes=1000), name).eval()
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    ours = agreement.create(name)
    weights.load(ours, tmp_path / "a.pth")
    grey = np.random.default_rng(0).uniform(-1, 1, (2, 101, 101, 1)).astype(np.float32)
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(grey.transpose(0, 3, 1, 2))).numpy()
    found = agreement.logits(ours, grey.repeat(3, axis=3))
    assert np.abs(found - expected).max() <= 1e-4 * expected.std()
    from timm.models._manipulate import adapt_input_conv

    adapted = adapt_input_conv(3, theirs.conv1.weight.detach(), base_chans=1).numpy()
    kernel = np.asarray(timm_files.read(tmp_path / "a.pth")[0]["conv1.weight"])
    np.testing.assert_allclose(kernel, adapted, rtol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "legacy_xception",
        "xception41",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("xception65", "xception71", "xception41p", "xception65p", "inception_v3")
        ),
    ],
)
def test_features_only(name, tmp_path):
    """A backbone without a classifier has all tensors of the whole model's."""
    timm = import_timm()
    theirs = timm.create_model(name, features_only=True).eval()
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    source = pretrained.open_pretrained(tmp_path / "a.pth")
    assert source.num_classes is None
    shapes = abstract(name, None, source.overrides(name))
    assert len(source.tensors(shapes, name)) > 100
    shorter = timm.create_model(name, features_only=True, out_indices=(0, 1))
    torch.save(shorter.state_dict(), tmp_path / "b.pth")
    source = pretrained.open_pretrained(tmp_path / "b.pth")
    if len(shorter.state_dict()) < len(theirs.state_dict()):
        with pytest.raises(UsageError, match=f"not a timm {name}: it lacks "):
            source.tensors(shapes, name)


def test_averaged_weights_of_torch(tmp_path):
    """Of `AveragedModel`, which wraps a model and counts; saved as torch's tutorials do."""
    timm = import_timm()
    model = timm.create_model("xception41", num_classes=7)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.module.head.fc.bias.data += 1
    whole = {
        "epoch": 3, "model_state_dict": model.state_dict(), "ema_state_dict": averaged.state_dict()
    }  # fmt: skip
    torch.save(whole, tmp_path / "a.pt")
    held, notes = timm_files.read(tmp_path / "a.pt")
    np.testing.assert_array_equal(held["head.fc.bias"], averaged.module.head.fc.bias.detach())
    assert notes == ["uses the averaged weights of the checkpoint (ema_state_dict), not those "
                     "of model_state_dict"]  # fmt: skip
    assert pretrained.open_pretrained(tmp_path / "a.pt").num_classes == 7


def test_a_checkpoint_that_timm_saves(tmp_path):
    """Its metric is a number of NumPy's; the averaged weights come first."""
    timm = import_timm()
    from timm.utils import CheckpointSaver, ModelEmaV3

    model = timm.create_model("xception41", num_classes=7)
    averaged = ModelEmaV3(model)
    averaged.module.head.fc.bias.data += 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    saver = CheckpointSaver(
        model, optimizer, argparse.Namespace(model="xception41"), averaged,
        checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path),
    )  # fmt: skip
    saver.save_checkpoint(0, metric=np.float32(71.3))
    path = tmp_path / "last.pth.tar"
    held, notes = timm_files.read(path)
    np.testing.assert_array_equal(held["head.fc.bias"], averaged.module.head.fc.bias.detach())
    assert "averaged weights" in notes[0]
    assert pretrained.open_pretrained(path).num_classes == 7
