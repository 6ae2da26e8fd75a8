"""Real Keras models of many heads in the four formats of Keras' files: logits, or one line.

`python -m pytest -m slow -s -n 0 tests/weights/keras/test_head.py` prints the table.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xception_jax import models
from xception_jax.errors import UsageError
from xception_jax.weights import pretrained
from xception_jax.weights.tensors import abstract

pytestmark = [
    pytest.mark.slow,
    # Keras 3.15 reads its own variables in a way that NumPy 2 deprecates.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
FORMATS = (".keras", ".h5", ".weights.h5", "legacy.h5")
SIZE = 75


@pytest.fixture(scope="module")
def keras():
    """Keras, whose models run one operation at a time here: hundreds of small programs."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield pytest.importorskip("keras")
    jax.config.update("jax_disable_most_optimizations", False)


def randomize(layer, seed):
    """Weights of a moderate size, no two alike."""
    rng = np.random.default_rng(seed)
    drawn = []
    for old in layer.get_weights():
        if old.ndim > 1:
            values = rng.normal(0, np.prod(old.shape[:-1]) ** -0.5, old.shape)
        else:
            values = rng.uniform(0.5, 1.5, old.shape)
        drawn.append(values.astype(np.float32) if old.dtype.kind == "f" else old)
    layer.set_weights(drawn)


def pictures(count, seed):
    """Coarse random patches, float32 of 0 to 255: no two pictures are alike, unlike fine noise."""
    patches = np.random.default_rng(seed).integers(0, 256, (count, 5, 5, 3)).astype(np.float32)
    return patches.repeat(SIZE // 5, 1).repeat(SIZE // 5, 2)


def settle(keras, model, seed):
    """Random weights, and the running statistics of random images, so that outputs tell images."""
    randomize(model, seed)
    norms = [each for each in model.layers if isinstance(each, keras.layers.BatchNormalization)]
    images = pictures(8, seed + 1) / 127.5 - 1
    momentum = norms[0].momentum
    for norm in norms:
        norm.momentum = 0.0
    model(images, training=True)
    for norm in norms:
        norm.momentum = momentum
    return model


@pytest.fixture(scope="module")
def bases(keras):
    made = {
        "xception": keras.applications.Xception,
        "inception_v3": keras.applications.InceptionV3,
    }
    found = {
        name: make(weights=None, include_top=False, input_shape=(SIZE, SIZE, 3))
        for name, make in made.items()
    }
    return {name: settle(keras, base, 0) for name, base in found.items()}


def nested(*head, before=()):
    """`base(x)` in a functional model."""

    def make(keras, base):
        x = images = keras.Input((SIZE, SIZE, 3))
        for layer in before:
            x = layer(keras)(x)
        x = base(x, training=False)
        for layer in head:
            x = layer(keras)(x)
        return keras.Model(images, x)

    return make


def flat(*head):
    """On `base.output`."""

    def make(keras, base):
        x = base.output
        for layer in head:
            x = layer(keras)(x)
        return keras.Model(base.input, x)

    return make


def sequential(*head):
    return lambda keras, base: keras.Sequential([base, *(layer(keras) for layer in head)])


def twice(*inner_head):
    """A model in a model in a model."""

    def make(keras, base):
        inner = keras.Sequential([base, *(layer(keras) for layer in inner_head)])
        return keras.Sequential([keras.Input((SIZE, SIZE, 3)), inner, dense(4, "softmax")(keras)])

    return make


def partly_frozen(*head):
    """The older format then has the layers of the base out of order."""

    def make(keras, base):
        for i, layer in enumerate(base.layers):
            layer.trainable = i % 3 == 0
        return nested(*head)(keras, base)

    return make


def preprocessed(*head):
    def make(keras, base):
        images = keras.Input((SIZE, SIZE, 3))
        x = keras.layers.RandomFlip("horizontal")(images)
        x = base(keras.applications.xception.preprocess_input(x))
        for layer in head:
            x = layer(keras)(x)
        return keras.Model(images, x)

    return make


def divided(*head):
    def make(keras, base):
        images = keras.Input((SIZE, SIZE, 3))
        x = base(keras.ops.subtract(keras.ops.divide(images, 127.5), 1.0))
        for layer in head:
            x = layer(keras)(x)
        return keras.Model(images, x)

    return make


def grey(*head):
    """A convolution makes three channels of one."""

    def make(keras, base):
        images = keras.Input((SIZE, SIZE, 1))
        x = base(keras.layers.Conv2D(3, 3, padding="same")(images))
        for layer in head:
            x = layer(keras)(x)
        return keras.Model(images, x)

    return make


def training(kind):
    """One layer of that kind is called with `training=True`."""

    def make(keras, base):
        images = keras.Input((SIZE, SIZE, 3))
        x = base(images, training=kind == "base")
        x = keras.layers.GlobalAveragePooling2D()(x)
        if kind != "base":
            options = {"rate": 0.5} if kind == "Dropout" else {}
            x = getattr(keras.layers, kind)(name="live", **options)(x, training=True)
        return keras.Model(images, dense(4, "softmax")(keras)(x))

    return make


def objects(kind, **options):
    """An activation that is a layer."""

    def made(keras):
        return keras.layers.Dense(16, activation=getattr(keras.layers, kind)(**options))

    return made


def two_outputs(keras, base):
    pooled = keras.layers.GlobalAveragePooling2D()(base.output)
    return keras.Model(base.input, [pooled, dense(4, "softmax")(keras)(pooled)])


def top(keras, base):
    model = getattr(keras.applications, {"xception": "Xception"}.get(base.name, "InceptionV3"))(
        weights=None, classes=4, input_shape=(SIZE, SIZE, 3)
    )
    return settle(keras, model, 2)


def bare(**options):
    def make(keras, base):
        make = {"xception": "Xception"}.get(base.name, "InceptionV3")
        model = getattr(keras.applications, make)(
            weights=None, include_top=False, input_shape=(SIZE, SIZE, 3), **options
        )
        return settle(keras, model, 3)

    return make


def layer(kind, *args, **options):
    return lambda keras: getattr(keras.layers, kind)(*args, **options)


def dense(units, activation=None, **options):
    return layer("Dense", units, activation=activation, **options)


average, maximum = layer("GlobalAveragePooling2D"), layer("GlobalMaxPooling2D")
dropout, norm = layer("Dropout", 0.3), layer("BatchNormalization", epsilon=1e-5)
last = dense(4, "softmax")
ALONE = "which cannot be read from weights without a config"
JUDGED = {".weights.h5": ALONE, "legacy.h5": ALONE}
PIXELS = True

no_top, no_top_maximum = bare(), bare(pooling="max")
SETTLED = (top, no_top, no_top_maximum)
# Of each kind: the model, its backbone, the activation that its config tells, whether it takes
# pixels of 0 to 255, and what is said of the formats that are refused.
KINDS = {
    "top of keras.applications": (top, "xception", "softmax", False, {}),
    "top of keras.applications, Inception": (top, "inception_v3", "softmax", False, {}),
    "average, dense": (nested(average, last), "xception", "softmax", False, {}),
    "on base.output": (flat(average, dropout, last), "xception", "softmax", False, {}),
    "Sequential, Inception": (sequential(average, last), "inception_v3", "softmax", False, {}),
    "partly frozen": (partly_frozen(average, last), "xception", "softmax", False, {}),
    "partly frozen, Inception": (
        partly_frozen(average, last), "inception_v3", "softmax", False, {},
    ),
    "twice nested": (twice(average, dense(16, "relu")), "xception", "softmax", False, {}),
    "maximum": (sequential(maximum, last), "xception", "softmax", False, JUDGED),
    "one unit, sigmoid": (sequential(average, dense(1, "sigmoid")), "xception", "sigmoid", False,
                          {}),
    "several labels": (nested(average, dense(5, "sigmoid")), "xception", "sigmoid", False, {}),
    "logits": (nested(average, dense(5, use_bias=False)), "xception", None, False, {}),
    "two hidden": (sequential(average, dense(32, "relu"), dropout, dense(16, "relu"), last),
                   "xception", "softmax", False, {}),
    "batch norm after pooling and ReLU": (
        nested(average, norm, dropout, dense(16, "relu"), norm, last),
        "xception", "softmax", False, JUDGED,
    ),
    "batch norm before ReLU": (
        flat(norm, average, dense(16), norm, layer("ReLU"), dense(8), last,),
        "xception", "softmax", False, JUDGED,
    ),
    "softmax layer": (nested(average, dense(4), layer("Softmax")), "xception", "softmax", False,
                      {}),
    "Rescaling to [-1, 1]": (
        nested(average, last, before=[layer("Rescaling", 1 / 127.5, offset=-1)]),
        "xception", "softmax", PIXELS, JUDGED,
    ),
    "Rescaling to [0, 1]": (
        nested(average, last, before=[layer("Rescaling", 1 / 255)]),
        "xception", "softmax", PIXELS, JUDGED,
    ),
    "Rescaling to [0, 1], Inception": (
        nested(average, last, before=[layer("Rescaling", 1 / 255)]),
        "inception_v3", "softmax", PIXELS, JUDGED,
    ),
    "Normalization": (
        nested(average, last, before=[layer("Normalization", mean=[120.0, 110, 100],
                                            variance=[3000.0, 4000, 5000])]),
        "xception", "softmax", PIXELS, JUDGED,
    ),
    "preprocess_input and augmentation": (
        preprocessed(average, last), "xception", "softmax", PIXELS, {},
    ),
    "no top": (no_top, "xception", None, False, {}),
    "no top, pooling=max": (no_top_maximum, "xception", None, False, JUDGED),
    "Flatten": (nested(layer("Flatten"), last), "xception", None, False,
                dict.fromkeys(FORMATS[:2], "has the Flatten layer 'flatten") | JUDGED),
    "GELU": (nested(average, dense(16, "gelu"), last), "xception", None, False,
             dict.fromkeys(FORMATS[:2], "the activation 'gelu' in the Dense layer 'dense")),
    "convolution in the head": (
        nested(layer("Conv2D", 8, 1), average, last), "xception", None, False,
        dict.fromkeys(FORMATS[:2], "has the Conv2D layer 'conv2d") | JUDGED,
    ),
    "Rescaling to [0, 255]": (
        nested(average, last, before=[layer("Rescaling", 255.0)]), "xception", None, False,
        dict.fromkeys(FORMATS[:2], "the range of its input cannot be inferred") | JUDGED,
    ),
    "divided by an operation": (divided(average, last), "xception", "softmax", PIXELS, {}),
    "ReLU as an object": (
        nested(average, objects("ReLU"), last), "xception", "softmax", False,
        {".weights.h5": "has a nested layer 'dense' with 'activation'"},
    ),
    "ReLU6 as an object": (
        nested(average, objects("ReLU", max_value=6.0), last), "xception", None, False,
        dict.fromkeys(FORMATS[:2], "the activation 'ReLU(max_value=6.0)' in the Dense layer")
        | {".weights.h5": "has a nested layer 'dense' with 'activation'"},
    ),
    "norm without center and scale": (
        nested(average, layer("BatchNormalization", center=False), dense(16, "relu"),
               layer("BatchNormalization", scale=False), last),
        "xception", "softmax", False, JUDGED,
    ),
    "convolution before": (
        grey(average, last), "xception", None, False,
        dict.fromkeys(FORMATS[:2], "has the Conv2D layer 'conv2d") | JUDGED,
    ),
    "base with training=True": (
        training("base"), "xception", None, False,
        dict.fromkeys(FORMATS[:2], "is in 'xception', which is called with training=True"),
    ),
    "Dropout with training=True": (
        training("Dropout"), "xception", None, False,
        dict.fromkeys(FORMATS[:2], "'live' in its head, which is called with training=True"),
    ),
    "BatchNormalization with training=True": (
        training("BatchNormalization"), "xception", None, False,
        dict.fromkeys(FORMATS[:2], "'live' in its head, which is called with training=True")
        | JUDGED,
    ),
    "channels first": (
        nested(layer("GlobalAveragePooling2D", data_format="channels_first"), last), "xception",
        None, False,
        dict.fromkeys(FORMATS[:2], "has the GlobalAveragePooling2D layer 'global_av")
        | dict.fromkeys(FORMATS[2:], "dense/0 is [3, 4], not [2048, 4]"),
    ),
    "keepdims": (
        nested(layer("GlobalAveragePooling2D", keepdims=True), layer("Flatten"), last), "xception",
        None, False,
        dict.fromkeys(FORMATS[:2], "has the GlobalAveragePooling2D layer 'global_av") | JUDGED,
    ),
    "two outputs": (
        two_outputs, "xception", None, False,
        dict.fromkeys(FORMATS[:2], "has 2 outputs in the model"),
    ),
    "Resizing": (
        nested(average, last, before=[layer("Resizing", SIZE, SIZE)]), "xception", None, False,
        dict.fromkeys(FORMATS[:2], "has the Resizing layer 'resizing") | JUDGED,
    ),
}  # fmt: skip
# A file of weights alone does not tell these; a note says what is assumed.
UNTOLD = ("GELU", "ReLU6 as an object", "base with training=True", "Dropout with training=True",
          "two outputs")  # fmt: skip


def save(keras, model, folder):
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    paths = {ending: folder / f"model{ending}" for ending in FORMATS}
    model.save(paths[".keras"])
    model.save(paths[".h5"])
    model.save_weights(paths[".weights.h5"])
    with h5py.File(paths["legacy.h5"], "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    return paths


def without_softmax(keras, model):
    """The logits: the activation at its end is taken away."""
    end = model.layers[-1]
    if isinstance(end, keras.layers.Softmax):
        return keras.Model(model.input, end.input)
    if hasattr(end, "activation") and isinstance(end, keras.layers.Dense):
        end.activation = keras.activations.linear
    return model


def convert(path, name):
    """The command's result for a file: the header, the tensors, and the notes."""
    source = pretrained.open_pretrained(path, format="keras")
    source.check_head()
    about = source.about(name)
    built = {key: value for key, value in about.overrides.items() if value is not None}
    return about, source.tensors(abstract(name, source.num_classes, built), name), source.notes()


def ours(about, held):
    """A model of a converted file."""
    built = {name: value for name, value in about.overrides.items() if value is not None}
    model = nnx.eval_shape(
        lambda: models.create(about.model, num_classes=about.num_classes, rngs=nnx.Rngs(0), **built)
    )
    for key, variable in pretrained.variables(model).items():
        variable.set_value(jnp.asarray(held[key]))
    return model


def same(one, two):
    return one.keys() == two.keys() and all(np.array_equal(one[key], two[key]) for key in one)


# In short runs some of those that are read and of those that a format refuses. What is refused is
# held against files made by hand in each default run, see test_config.py.
READ = [kind for kind, (*_, refused) in KINDS.items() if not refused]
REFUSED = [kind for kind in KINDS if kind not in READ]
SHORT = {*READ[::4], *REFUSED[::3]}


@pytest.mark.parametrize(
    "kind",
    [kind if kind in SHORT else pytest.param(kind, marks=pytest.mark.long) for kind in KINDS],
)
def test_logits_are_keras_own_or_one_line_says_why_not(kind, keras, bases, tmp_path):
    make, name, activation, pixels, refused = KINDS[kind]
    trainable = {layer: layer.trainable for layer in bases[name].layers}
    model = make(keras, bases[name])
    if make not in SETTLED:
        # Leaves alone: a model in a model has the base in it.
        added = [x for x in model.layers if not hasattr(x, "layers") and x.weights]
        for i, layer in enumerate(x for x in added if x not in bases[name].layers):
            randomize(layer, i + 1)
    paths = save(keras, model, tmp_path)
    for layer, before in trainable.items():
        layer.trainable = before
    images = pictures(3, 0)
    scaled = images / 127.5 - 1
    theirs = None
    row, made = [kind], {}
    for kept, path in paths.items():
        if kept in refused:
            with pytest.raises(UsageError) as raised:
                convert(path, name)
            assert refused[kept] in str(raised.value)
            assert str(raised.value).startswith(f"{path} ")
            assert "\n" not in str(raised.value)
            row.append("refused")
            continue
        about, made[kept], notes = convert(path, name)
        assert notes or pixels
        if kept in FORMATS[:2]:
            assert about.activation == activation
            assert about.preprocessing["image_size"] == SIZE
        first = next(iter(made.values()))
        if kind in UNTOLD:
            assert "assumed: " in notes[0]
            assert ("ReLU between dense layers" in notes[0]) == ("LU" in kind)
            row.append("noted")
            continue
        if made[kept] is not first and same(made[kept], first):
            row.append("the same")
            continue
        if theirs is None:
            theirs = np.asarray(without_softmax(keras, model)(images if pixels else scaled,
                                                              training=False))  # fmt: skip
            theirs = theirs.mean((1, 2)) if theirs.ndim == 4 else theirs
        logits = np.asarray(ours(about, made[kept])(jnp.asarray(scaled)))
        assert logits.shape == theirs.shape
        spread = theirs.std(0).mean()  # over images
        assert spread > 1e-3 * np.abs(theirs).max()
        difference = np.abs(logits - theirs).max() / spread
        row.append(f"{difference:.1e}")
        assert difference < 1e-4
    print("| " + " | ".join(row) + " |")
