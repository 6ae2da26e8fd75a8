"""timm's Xception, fine-tuned with the defaults of timm's `train.py`, for some minutes.

    python benchmarks/peers/tuned_timm.py FOLDER START SIDE SEED MINUTES

START is a `.safetensors` of `legacy_xception`, which `xception_jax.convert --to=timm` writes. The
defaults: SGD with Nesterov momentum of 0.9, a rate of 0.1 * batch / 256, weight decay of 2e-5, and
batches of 128. Images have random crops of 8 to 100 % of the area, flips and color jitter of 0.4.
The rate rises for 5 epochs from 1e-5, and falls as a cosine. 300 epochs do not fit: there are as
many as the minutes allow, by the time of the first. The last weights are tested. Prints the number
of test pictures and the share with errors, as JSON.
"""

import json
import sys
import time

import torch
import torchvision_operators
from safetensors.torch import load_file

torchvision_operators.declare()

import timm  # noqa: E402
from timm.data import create_dataset, create_loader  # noqa: E402
from timm.optim import create_optimizer_v2  # noqa: E402
from timm.scheduler import create_scheduler_v2  # noqa: E402
from timm.utils import random_seed  # noqa: E402

_BATCH, _WARMUP = 128, 5


def loader(folder: str, split: str, side: int, training: bool):
    """Makes the batches as `train.py` does."""
    data = create_dataset("", root=folder, split=split, is_training=training)
    return create_loader(
        data, input_size=(3, side, side), batch_size=min(_BATCH, len(data)), is_training=training,
        scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), hflip=0.5, color_jitter=0.4,
        interpolation="random" if training else "bicubic", mean=(0.5,) * 3, std=(0.5,) * 3,
        num_workers=0, persistent_workers=False, use_prefetcher=False, crop_pct=0.875,
        device=torch.device("cpu"),
    )  # fmt: skip


def epoch(model, batches, optimizer, schedule, number: int, updates: int) -> int:
    """Trains one epoch; returns the number of updates so far."""
    model.train()
    for images, labels in batches:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        updates += 1
        if schedule:
            schedule.step_update(updates)
    if schedule:
        schedule.step(number + 1)
    return updates


def main(folder: str, start: str, side: str, seed: str, minutes: str) -> None:
    """Trains for the minutes and prints the error on the test pictures."""
    begin = time.perf_counter()
    random_seed(int(seed))
    training = loader(folder, "train", int(side), True)
    classes = len(training.dataset.reader.class_to_idx)
    model = timm.create_model("legacy_xception", num_classes=classes)
    missing, unexpected = model.load_state_dict(load_file(start), strict=False)
    assert all(name.startswith("fc.") for name in missing if "num_batches" not in name), missing
    assert not unexpected, unexpected
    rate = 0.1 * _BATCH / 256
    optimizer = create_optimizer_v2(model, "sgd", lr=rate, weight_decay=2e-5, momentum=0.9)
    for group in optimizer.param_groups:
        group["lr"] = 1e-5  # of the warmup's first epoch
    first = time.perf_counter()
    updates = epoch(model, training, optimizer, None, 0, 0)
    took = time.perf_counter() - first
    testing = loader(folder, "test", int(side), False)
    # A test picture costs a third of a training picture.
    last = took * len(testing.dataset) / len(training.dataset) / 3
    epochs = max(1, int((60 * float(minutes) - (first - begin) - last) / took))
    for group in optimizer.param_groups:
        group["lr"] = rate
    schedule, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=epochs, warmup_epochs=min(_WARMUP, epochs // 2),
        warmup_lr=1e-5, updates_per_epoch=len(training),
    )  # fmt: skip
    schedule.step(1)
    for number in range(1, epochs):
        updates = epoch(model, training, optimizer, schedule, number, updates)
    model.eval()
    wrong = 0
    with torch.inference_mode():
        for images, labels in testing:
            wrong += int((model(images).argmax(1) != labels).sum())
    count = len(testing.dataset)
    print(json.dumps({"tested": count, "error": wrong / count, "epochs": epochs}))


if __name__ == "__main__":
    main(*sys.argv[1:])
