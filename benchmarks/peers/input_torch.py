"""torch's DataLoader with Pillow and torchvision's usual transforms, in one worker process."""

from collections.abc import Callable

import torch
import torchvision_operators
from worker import Work

torchvision_operators.declare()
from torchvision import datasets, transforms  # noqa: E402


def build(work: Work) -> Callable[[int], None]:
    """See `worker`."""
    torch.set_num_threads(1)
    data = datasets.ImageFolder(
        f"{work.data}/train",
        transforms.Compose(
            [
                transforms.RandomResizedCrop(work.side),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5,) * 3, (0.5,) * 3),
            ]
        ),
    )
    # Long enough that no epoch ends, which would restart the worker, within a turn.
    endless = torch.utils.data.RandomSampler(data, replacement=True, num_samples=10_000_000)
    loader = torch.utils.data.DataLoader(
        data, work.batch, sampler=endless, num_workers=1, drop_last=True
    )
    batches = iter(loader)

    def run(steps: int) -> None:
        for _ in range(steps):
            next(batches)

    return run
