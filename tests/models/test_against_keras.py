"""Xception and Inception V3 against Keras' own with the same weights."""

import numpy as np
import pytest

from tests.models import agreement
from xception_jax import weights

pytestmark = [
    pytest.mark.slow,
    # Keras 3.15 reads its own variables in a way that NumPy 2 deprecates.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
keras = pytest.importorskip("keras")


@pytest.mark.parametrize(
    ("name", "make"), [("xception", "Xception"), ("inception_v3", "InceptionV3")]
)
def test_features_and_logits_are_keras_own(name, make, tmp_path):
    def theirs(size: int):
        return getattr(keras.applications, make)(
            weights=None, input_shape=(size, size, 3), classifier_activation=None
        )

    whole = theirs(agreement.SIZES[0])
    rng = np.random.default_rng(0)
    for layer in whole.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            drawn = agreement.batch_statistics(rng, layer.moving_mean.shape[0])
            layer.set_weights([drawn[k] for k in drawn if layer.scale or k != "scale"])
        elif isinstance(layer, keras.layers.SeparableConv2D):
            depthwise, pointwise = (weight.shape for weight in layer.weights)
            layer.set_weights(
                [
                    agreement.kernel(rng, depthwise, 9, name),
                    agreement.kernel(rng, pointwise, pointwise[2], name),
                ]
            )
        elif isinstance(layer, keras.layers.Conv2D):
            shape = layer.kernel.shape
            layer.set_weights([agreement.kernel(rng, shape, int(np.prod(shape[:3])), name)])
    model = agreement.create(name)
    whole.save_weights(tmp_path / "theirs.weights.h5")
    weights.load(model, tmp_path / "theirs.weights.h5")

    def reference(images):
        sized = whole if images.shape[1] == agreement.SIZES[0] else theirs(images.shape[1])
        sized.set_weights(whole.get_weights())
        both = keras.Model(sized.input, [sized.layers[-3].output, sized.output])
        return [np.asarray(output) for output in both.predict_on_batch(images)]

    agreement.assert_agrees(model, reference)
