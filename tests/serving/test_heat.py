"""Grad-CAM by hand and in torch, and where it is drawn."""

import jax
import numpy as np
import pytest
from flax import nnx

from xception_jax import models, weights
from xception_jax.data.render import presets
from xception_jax.data.render.decode import Images
from xception_jax.serving import heat, inference
from xception_jax.training import state


def test_of_a_linear_head_it_is_the_class_map():
    """Mean pooling and a linear head: the class' weights times the maps (arXiv:1512.04150)."""
    model = models.create("xception", num_classes=5, rngs=nnx.Rngs(0), width=0.1, middle_blocks=1)
    graphdef, params, batch_stats = state.split(model)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
    found = jax.jit(
        lambda x: inference.answers(
            graphdef,
            {"params": params, "batch_stats": batch_stats},
            x,
            activation="softmax",
            explain=True,
        )
    )(pixels)
    maps = np.asarray(model.features(model.normalize(pixels)))
    kernel = np.asarray(params["head"]["classifier"]["kernel"])
    classes = np.asarray(found["logits"]).argmax(1)
    expected = np.stack([np.maximum(maps[i] @ kernel[:, classes[i]], 0) for i in range(2)])
    expected /= maps.shape[1] * maps.shape[2]
    np.testing.assert_allclose(found["heat"], expected, atol=1e-5 * expected.max())


@pytest.mark.slow
def test_it_is_that_of_torch(tmp_path):
    """By torch's own gradients, of timm's model with the same weights."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("benchmarks.peers.torchvision_operators").declare()
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model("legacy_xception", num_classes=7).eval()
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    ours = models.create("legacy_xception", num_classes=7, rngs=nnx.Rngs(0))
    weights.load(ours, tmp_path / "net.pth")
    images = np.random.default_rng(0).uniform(-1, 1, (2, 128, 128, 3)).astype(np.float32)

    maps = theirs.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    maps.retain_grad()
    logits = theirs.forward_head(maps)
    logits.max(1).values.sum().backward()
    importance = maps.grad.mean((2, 3), keepdim=True)
    expected = torch.relu((importance * maps).sum(1)).detach().numpy()

    own = ours.features(images)
    found = inference.heat_of(ours, own, np.asarray(ours.classify(ours.pool(own))).argmax(1))
    np.testing.assert_allclose(found, expected, atol=1e-3 * expected.max())


@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("shape", [(100, 160), (300, 200), (99, 99)])
def test_what_is_seen_is_what_the_image_is_made_of(preset, shape):
    """A picture that is white there and black elsewhere gives a white image, and no smaller one."""
    crop = 1.0 if preset == "keras" else 0.8
    images = Images(64, eval_preset=preset, eval_crop=crop)
    top, left, height, width = presets.seen(images, *shape)
    picture = np.zeros((*shape, 3), np.uint8)
    picture[round(top) : round(top + height), round(left) : round(left + width)] = 255
    made = presets.PRESETS[preset](picture, 64, crop)
    assert made.mean() > 250
    inner = np.zeros((*shape, 3), np.uint8)
    edge = 8
    inner[round(top) + edge : round(top + height) - edge,
          round(left) + edge : round(left + width) - edge] = 255  # fmt: skip
    made = presets.PRESETS[preset](inner, 64, crop)
    assert made[0].max() < 20
    assert made[:, -1].max() < 20


def test_it_is_drawn_over_what_is_seen():
    picture = np.full((100, 200, 3), 100, np.uint8)
    hot = np.zeros((8, 8), np.float32)
    hot[0, 0] = 3.0
    drawn = heat.draw(picture, hot, Images(64, eval_crop=1.0))
    assert drawn.shape == picture.shape
    np.testing.assert_array_equal(drawn[:, :50], 50)  # outside of the centred square: darker
    first, last = drawn[2, 52].astype(int), drawn[-3, -53].astype(int)
    assert first[0] > first[2]  # red
    assert last[2] > last[0]  # blue
    assert heat.draw(np.zeros((4000, 1000, 3), np.uint8), hot, Images(64)).shape == (800, 200, 3)
    assert np.isfinite(heat.draw(picture, np.zeros((8, 8), np.float32), Images(64))).all()
