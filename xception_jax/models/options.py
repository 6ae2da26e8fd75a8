"""The fields of `config.model` that several models share; those of one model are in its file.

`None` stands for the model's own default, which is that of the argument of its class.
"""

from xception_jax.config.fields import Field

FIELDS = {
    "width": Field(
        None, "factor on the numbers of channels; None: the model's own default", float, low=0.01
    ),
    "middle_blocks": Field(
        None,
        "blocks of the middle flow, not of Inception V3; None: the model's own default",
        int,
        low=0,
    ),
    "stem_stride": Field(
        None,
        "stride of the first convolution; None: the model's own default",
        int,
        low=1,
        high=2,
    ),
    "pooling": Field(
        None,
        "of the last feature maps; None: the model's own default",
        str,
        choices=("average", "max"),
    ),
    "fc_units": Field(
        None,
        "sizes of fully connected layers; None: the model's own default",
        tuple,
        low=1,
        fractions=False,
    ),
    "dropout": Field(
        None,
        "share dropped before the classifier; None: the model's own default",
        float,
        low=0.0,
        high=0.99,
    ),
    "bn_epsilon": Field(
        None, "added to the batch variance; None: the model's own default", float, low=0.0
    ),
    "bn_momentum": Field(
        None,
        "of the running batch statistics; None: the model's own default",
        float,
        low=0.0,
        high=1.0,
    ),
    "bn_virtual_batch": Field(
        None, "examples whose statistics normalize together; None: the whole batch", int, low=1
    ),
    "freeze": Field(
        None,
        "last block that is not trained: block4, mixed2, blocks.3, as the model's blocks() names "
        "them, or a flow, as middle_flow; None: all are trained",
        str,
    ),
    "remat": Field(
        None,
        "compute blocks again for their gradients, to save memory; None: the model's own default",
        bool,
        harmless=True,
    ),
    "scan_middle": Field(
        None,
        "loop over the middle flow, to compile faster, not of Inception V3; None: the model's own "
        "default",
        bool,
        harmless=True,
    ),
}

# Those of training alone: they do not change what given weights compute.
OF_TRAINING = frozenset(
    ("dropout", "bn_momentum", "bn_virtual_batch", "freeze", "remat", "scan_middle")
)
