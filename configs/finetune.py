"""Xception on a folder of pictures, from weights that were trained on ImageNet.

    python -m xception_jax.main --config=configs/finetune.py --workdir=runs/pets \
        --config.init_from=xception.safetensors --config.data.dataset=folder:PATH

`python -m xception_jax.finetune PATH` is the short way: it chooses the values by the data and the
machine, and keeps the test set for the end (docs/finetune.md). This recipe has the values that it
chooses for 1,000 large pictures and a fast device; `--config=configs/finetune.py:5000` has those
for 5,000. But it freezes whole flows, which have the same name in each Xception. The values are in
`xception_jax/finetuning/table.py`, which says how they were chosen.

PATH is a folder of pictures, see docs/folder.md. docs/weights.md says where to get weights; a Keras
or timm file works directly. Images have the size, resize and crop of the weights' training, unless
the config sets data.image_size, data.eval_preset or data.eval_crop.
"""

from ml_collections import ConfigDict

from xception_jax.finetuning import choice


def get_config(pictures: str = "1000") -> ConfigDict:
    """Returns the config for a number of training pictures."""
    config = choice.typical(int(pictures))
    config.init_from = "xception.safetensors"
    config.data.dataset = "folder:PATH"
    config.eval.patience = 0  # a run without a validation part would stop by its test set
    return config
