"""The fields of `config.model` that several models share; those of one model are in its file.

`None` is the model's default: the default of the argument of its class.
"""

from xception_jax.config.fields import Field

FIELDS = {
    "width": Field(
        None, "factor of the numbers of channels; None: the model's default", float, low=0.01
    ),
    "middle_blocks": Field(
        None,
        "number of blocks in the middle flow, which Inception V3 lacks; None: the model's default",
        int,
        low=0,
    ),
    "stem_stride": Field(
        None,
        "stride of the first convolution; None: the model's default",
        int,
        low=1,
        high=2,
    ),
    "pooling": Field(
        None,
        "global pooling before the head; None: the model's default",
        str,
        choices=("average", "max"),
    ),
    "fc_units": Field(
        None,
        "sizes of the fully connected layers before the classifier; None: the model's default",
        tuple,
        low=1,
        fractions=False,
    ),
    "dropout": Field(
        None,
        "dropout rate before the classifier; None: the model's default",
        float,
        low=0.0,
        high=0.99,
    ),
    "bn_epsilon": Field(
        None, "number added to the batch variance; None: the model's default", float, low=0.0
    ),
    "bn_momentum": Field(
        None,
        "momentum of the running batch statistics; None: the model's default",
        float,
        low=0.0,
        high=1.0,
    ),
    "bn_virtual_batch": Field(
        None, "examples that are normalized together; None: the full batch", int, low=1
    ),
    "freeze": Field(
        None,
        "last frozen block (block4, mixed2, blocks.3 etc., see the model's blocks()) or flow "
        "(middle_flow); all before it is frozen too; None: everything is trained",
        str,
    ),
    "remat": Field(
        None,
        "recompute blocks for their gradients, to save memory; None: the model's default",
        bool,
        harmless=True,
    ),
    "scan_middle": Field(
        None,
        "loop over the middle flow, to compile faster, not in Inception V3; None: the model's "
        "default",
        bool,
        harmless=True,
    ),
}

# Fields that only affect training: they do not change the output for given weights.
OF_TRAINING = frozenset(
    ("dropout", "bn_momentum", "bn_virtual_batch", "freeze", "remat", "scan_middle")
)
