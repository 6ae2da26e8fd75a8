"""Digests of arrays: 64 bits each, the same however the array is sharded.

Algorithm 2 mixes each word with its position in the array by two nonlinear functions, and adds the
results modulo 2^32. Addition is associative, so shards can be summed in any order. Then the path,
dtype and shape of the leaf are mixed in.

- A change within one word is always detected: each mix is a bijection of the word.
- Any other damage is missed with a probability of about 2^-64: for example exchanged words or
  arrays, equal bits flipped in several words, zeroed blocks, a permuted axis.
- It is not a cryptographic hash: it detects damage, not forgery.

Algorithm 1, of manifests without a seal, adds the words, each times an odd number that grows with
its position. It also detects any change within one word. But two equal flips of bit 31 always
cancel (two changed signs, a negated kernel), of bit 30 in half of the cases, of bit 29 in a
quarter, etc.
"""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any

# The algorithm of new checkpoints, which is written to the manifest.
LATEST = 2


def _words(leaf: jax.Array) -> jax.Array:
    """The bits as uint32: one word per element, or two in an extra last axis for 8-byte types."""
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[leaf.dtype.itemsize]
    return jax.lax.bitcast_convert_type(leaf, width).astype(jnp.uint32)


def _mix(x: jax.Array, first: int, second: int) -> jax.Array:
    """A bijection of uint32, similar to MurmurHash3's finalizer."""
    x = (x ^ (x >> 16)) * jnp.uint32(first)
    x = (x ^ (x >> 15)) * jnp.uint32(second)
    return x ^ (x >> 16)


def mixed(words: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two mixes, uint32, of each word with its index in row-major order (modulo 2^32)."""
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    key = _mix(place + jnp.uint32(0x9E3779B9), 0x7FEB352D, 0x846CA68B)
    keyed = (words ^ key) * (2 * place + jnp.uint32(0x85EBCA6B))  # an odd factor: a bijection
    return _mix(keyed, 0x85EBCA6B, 0xC2B2AE35), _mix(keyed + key, 0x7FEB352D, 0x846CA68B)


@jax.jit
def _digest(leaf: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The two sums, uint32, and 1 if the array has only finite values, else 0."""
    words = _words(leaf)
    floating = jnp.issubdtype(leaf.dtype, jnp.floating)
    finite = jnp.isfinite(leaf) if floating else jnp.ones(leaf.shape, bool)
    shape = words.shape[: leaf.ndim] + (1,) * (words.ndim - leaf.ndim)
    finite = jnp.broadcast_to(finite.reshape(shape), words.shape).astype(jnp.uint32)
    # One reduction of three values reads the array once; on CPU three reductions read it each time.
    zero, one = jnp.uint32(0), jnp.uint32(1)
    low, high, good = jax.lax.reduce(
        (*mixed(words), finite),
        (zero, zero, one),
        lambda a, b: (a[0] + b[0], a[1] + b[1], a[2] & b[2]),
        tuple(range(words.ndim)),
    )
    return low, high, good


@jax.jit
def _digest_1(leaf: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Algorithm 1 in the form of `_digest`; the second sum is 0."""
    finite = jnp.all(jnp.isfinite(leaf)) if jnp.issubdtype(leaf.dtype, jnp.floating) else True
    words = _words(leaf)
    weights = jnp.full((), 1, jnp.uint32)
    stride = 2
    for axis in reversed(range(words.ndim)):
        positions = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        weights = weights + positions * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    total = jnp.sum(words * weights, dtype=jnp.uint32)
    return total, jnp.zeros((), jnp.uint32), jnp.asarray(finite, jnp.uint32)


def _named(name: str, leaf: jax.Array, low: int, high: int) -> str:
    """The digest in hexadecimal: the sums, mixed with the leaf's path, dtype and shape."""
    about = f"{name} {leaf.dtype} {leaf.shape}".encode()
    said = int.from_bytes(hashlib.sha256(about).digest()[:8], "big")
    return f"{said ^ (int(high) << 32 | int(low)):016x}"


def _check_dtype(name: str, leaf: jax.Array) -> None:
    """Raises `TypeError` for a dtype that cannot be converted to words."""
    dtype = leaf.dtype
    known = jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool_
    packed = known and jnp.issubdtype(dtype, jnp.integer) and jnp.iinfo(dtype).bits < 8
    packed |= known and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 8
    if not known or packed or jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"no digest of {name}: its dtype is {dtype}")


def digests(tree: Tree, algorithm: int = LATEST) -> tuple[dict[str, Any], list[str]]:
    """The digest of every leaf by its path, and the paths of the leaves that are not finite.

    The devices compute it with one small program per shape, because one program for the complete
    tree takes seconds to compile.

    Args:
      tree: of boolean, integer and floating-point arrays whose elements have 1, 2, 4 or 8 bytes.
      algorithm: 1 returns integers, 2 (see the module) returns 16 hexadecimal digits.

    Raises:
      TypeError: a leaf has another dtype; the message names it.
    """
    leaves = [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    results = []
    for name, leaf in leaves:
        _check_dtype(name, leaf)
        result = (_digest if algorithm == 2 else _digest_1)(leaf)
        if not leaf.is_fully_replicated:
            # The devices sum their parts. On CPU, each sum that waits for another process blocks a
            # thread. With dozens of sums in flight, two processes waited for each other forever.
            jax.block_until_ready(result)
        results.append(result)
    found: dict[str, Any] = {}
    broken = []
    for (name, leaf), (low, high, finite) in zip(leaves, jax.device_get(results), strict=True):
        found[name] = int(low) if algorithm == 1 else _named(name, leaf, low, high)
        if not finite:
            broken.append(name)
    return found, broken
