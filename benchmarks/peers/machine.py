"""The peak performance of the machine, measured like a peer.

Variants: `product` of two large square matrices; `copy` of an array larger than any cache. On CPU
in NumPy (OpenBLAS), on GPU in JAX. One step counts as one image: the work's batch is 1.
"""

from collections.abc import Callable

from worker import Work

_SIDE = {"cpu": 2048, "gpu": 8192}
_COPIED = {"cpu": 2**28, "gpu": 2**32}  # bytes


def build(work: Work) -> Callable[[int], None]:
    """See `worker`."""
    return _on_gpu(work) if work.platform == "gpu" else _on_cpu(work)


def facts(work: Work) -> dict[str, object]:
    """Floating-point operations of a step, and bytes that it reads and writes."""
    if work.variant == "product":
        return {"flops_per_image": 2 * _SIDE[work.platform] ** 3}
    return {"bytes_per_image": 2 * _COPIED[work.platform]}


def _on_cpu(work: Work) -> Callable[[int], None]:
    import numpy as np

    if work.variant == "product":
        side = _SIDE["cpu"]
        left, right = np.random.default_rng(0).random((2, side, side), np.float32)
        out = np.empty_like(left)

        def step() -> None:
            np.matmul(left, right, out=out)
    else:
        source = np.ones(_COPIED["cpu"] // 4, np.float32)
        target = np.zeros_like(source)

        def step() -> None:
            np.copyto(target, source)

    def run(steps: int) -> None:
        for _ in range(steps):
            step()

    return run


def _on_gpu(work: Work) -> Callable[[int], None]:
    import jax
    import jax.numpy as jnp

    if work.variant == "product":
        shape = (_SIDE["gpu"], _SIDE["gpu"])
        array = jax.random.normal(jax.random.key(0), shape, jnp.dtype(work.dtype))
        step = jax.jit(lambda x: x @ x)
    else:
        array = jnp.ones(_COPIED["gpu"] // 4, jnp.float32)
        step = jax.jit(lambda x: x + 1)

    def run(steps: int) -> None:
        for _ in range(steps):
            last = step(array)
        last.block_until_ready()

    return run
