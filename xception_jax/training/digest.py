"""A digest of an array that any flipped bit changes, the same however the array is sharded."""

from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


@jax.jit
def _digest(leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The digest, uint32, and whether all of a floating-point array is finite."""
    finite = jnp.all(jnp.isfinite(leaf)) if jnp.issubdtype(leaf.dtype, jnp.floating) else True
    width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[leaf.dtype.itemsize]
    words = jax.lax.bitcast_convert_type(leaf, width).astype(jnp.uint32)
    # An odd weight a word: a flipped bit shifts the sum by 2^k times an odd number, never by
    # 0 modulo 2^32. The weights differ by position, so that exchanged words show too. Addition
    # modulo 2^32 is associative: shards can be summed in any order.
    weights = jnp.full((), 1, jnp.uint32)
    stride = 2
    for axis in reversed(range(words.ndim)):
        positions = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        weights = weights + positions * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(words * weights, dtype=jnp.uint32), jnp.asarray(finite)


def digests(tree: Tree) -> tuple[dict[str, int], list[str]]:
    """The digest of every leaf by its path, and the paths of the leaves that are not finite.

    Computed on the devices; one small program a shape, since one over the whole tree compiles for
    seconds.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    results = []
    for _, leaf in leaves:
        result = _digest(leaf)
        if not leaf.is_fully_replicated:
            # The devices add up their parts. On CPU each such sum that waits for other processes
            # holds a thread: with dozens of them in flight two processes waited for ever.
            jax.block_until_ready(result)
        results.append(result)
    results = jax.device_get(results)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    found = {name: int(digest) for name, (digest, _) in zip(names, results, strict=True)}
    broken = [name for name, (_, finite) in zip(names, results, strict=True) if not finite]
    return found, broken
