"""timm's `legacy_xception` under PyTorch.

Variants: `channels_last`, `contiguous` (both eager) and `compiled` (channels last through
`torch.compile`).
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torchvision_operators
from worker import Work


def create_model(name: str = "legacy_xception") -> torch.nn.Module:
    """A new model."""
    torchvision_operators.declare()
    import timm

    return timm.create_model(name, pretrained=False, num_classes=1000)


def build(work: Work) -> Callable[[int], None]:
    """See `worker`."""
    device = "cuda" if work.platform == "gpu" else "cpu"
    if work.cores:
        torch.set_num_threads(len(work.cores))
    torch.backends.cudnn.benchmark = True
    order = torch.contiguous_format if work.variant == "contiguous" else torch.channels_last
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(work.batch, 3, work.side, work.side, generator=generator) * 2 - 1
    images = images.to(device).contiguous(memory_format=order)
    labels = torch.randint(0, 1000, (work.batch,), generator=generator).to(device)
    model = create_model().to(device, memory_format=order)
    model.train(work.kind == "training")
    if work.variant == "compiled":
        model.compile()
    low = work.dtype == "bfloat16"
    precision = torch.autocast(device, torch.bfloat16) if low else nullcontext()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def forward() -> None:
        with torch.inference_mode(), precision:
            model(images)

    def train() -> None:
        optimizer.zero_grad()
        with precision:
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    step = train if work.kind == "training" else forward

    def run(steps: int) -> None:
        for _ in range(steps):
            step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run
