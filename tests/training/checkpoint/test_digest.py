"""What a digest must notice, by classes of damage, and that sharding changes nothing."""

import hashlib

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from xception_jax.training import sharding
from xception_jax.training.checkpoint import digest
from xception_jax.training.checkpoint.digest import digests

RNG = np.random.default_rng(0)
WORDS = RNG.standard_normal((8, 5, 3), np.float32)
SIGN = np.uint32(1 << 31)


def of(array: np.ndarray, name: str = "a", algorithm: int = digest.LATEST) -> object:
    return digests({name: jnp.asarray(array)}, algorithm)[0][name]


@pytest.mark.parametrize("algorithm", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=30, deadline=None)
def test_every_flipped_bit_shows(dtype, algorithm, data):
    array = np.asarray(jnp.asarray(WORDS * 40).astype(dtype))
    raw = array.copy().view(np.uint8)
    byte = data.draw(st.integers(0, raw.size - 1))
    raw.reshape(-1)[byte] ^= np.uint8(1 << data.draw(st.integers(0, 7)))
    damaged = raw.view(array.dtype).reshape(array.shape)
    assert of(array, algorithm=algorithm) != of(damaged, algorithm=algorithm)


def mix(x: np.ndarray, first: int, second: int) -> np.ndarray:
    """The finalizer by hand, in 64 bits, cut after each product."""
    x = ((x ^ (x >> 16)) * first) % 2**32
    x = ((x ^ (x >> 15)) * second) % 2**32
    return x ^ (x >> 16)


def by_hand(array: np.ndarray, name: str) -> str:
    """Algorithm 2 in numpy, as the module describes it."""
    words = array.reshape(-1).view(f"u{min(array.itemsize, 4)}").astype(np.uint64)
    place = np.arange(words.size, dtype=np.uint64)
    key = mix((place + 0x9E3779B9) % 2**32, 0x7FEB352D, 0x846CA68B)
    keyed = (words ^ key) * ((2 * place + 0x85EBCA6B) % 2**32) % 2**32
    low = int(mix(keyed, 0x85EBCA6B, 0xC2B2AE35).sum() % 2**32)
    high = int(mix((keyed + key) % 2**32, 0x7FEB352D, 0x846CA68B).sum() % 2**32)
    about = hashlib.sha256(f"{name} {array.dtype} {array.shape}".encode()).digest()[:8]
    return f"{int.from_bytes(about, 'big') ^ (high << 32 | low):016x}"


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "uint8", "bool", "int64"])
@pytest.mark.parametrize("shape", [(8, 5, 3), (120,), (), (0, 4)])
def test_by_hand(dtype, shape):
    array = np.resize(WORDS * 40, shape).astype(dtype)
    with jax.enable_x64():
        found = digests({"a": {"b": jnp.asarray(array)}})
    assert found == ({"a.b": by_hand(array, "a.b")}, [])


def test_the_old_digest_by_hand():
    """The sum of the words, each times an odd number that grows with its position."""
    weights = 2 * np.arange(WORDS.size, dtype=np.uint64) + 1
    expected = int((WORDS.view(np.uint32).reshape(-1) * weights).sum() % 2**32)
    assert digests({"a": {"b": jnp.asarray(WORDS)}}, 1)[0] == {"a.b": expected}


# A kernel of a separable convolution's pointwise part, with blocks and axes to damage.
KERNEL = RNG.standard_normal((64, 64), np.float32)
BITS = KERNEL.view(np.uint32)


def changed(words: np.ndarray) -> np.ndarray:
    return words.astype(np.uint32).view(np.float32)


def zeroed(rows: slice, columns: slice) -> np.ndarray:
    array = KERNEL.copy()
    array[rows, columns] = 0
    return array


def with_rows(order: list[int]) -> np.ndarray:
    return KERNEL[[*order, *range(len(order), 64)]]


DAMAGES = {
    "negated kernel": -KERNEL,
    "negated channel": KERNEL * np.where(np.arange(64) == 5, -1, 1).astype(np.float32),
    "two changed signs": changed(BITS ^ SIGN * (np.arange(4096).reshape(64, 64) < 2)),
    "bit 30 everywhere": changed(BITS ^ np.uint32(1 << 30)),
    "zeroed block of the disk": zeroed(slice(16, 32), slice(None)),
    "zeroed channel": zeroed(slice(None), slice(3, 4)),
    "all zero": np.zeros_like(KERNEL),
    "all zero except the sign": np.full_like(KERNEL, -0.0),
    "two rows exchanged": with_rows([1, 0]),
    "rows shifted": np.roll(KERNEL, 1, 0),
    "columns shifted": np.roll(KERNEL, 1, 1),
    "permuted axes": KERNEL.T.copy(),
    "reversed": KERNEL[::-1, ::-1].copy(),
    "another shape": KERNEL.reshape(32, 128),
    "another dtype": KERNEL.view(np.int32),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_class_of_damage_shows(damage):
    assert of(DAMAGES[damage]) != of(KERNEL)


def test_x_and_minus_x_exchanged():
    array = WORDS.copy()
    array[1, 2, 0] = -array[0, 0, 0]
    exchanged = array.copy()
    exchanged[0, 0, 0], exchanged[1, 2, 0] = array[1, 2, 0], array[0, 0, 0]
    assert of(array) != of(exchanged)
    assert of(array, algorithm=1) == of(exchanged, algorithm=1), "which is why there is another"


def test_two_arrays_of_one_shape_exchanged():
    other = RNG.standard_normal(WORDS.shape, np.float32)
    then = digests({"a": jnp.asarray(WORDS), "b": jnp.asarray(other)})[0]
    now = digests({"a": jnp.asarray(other), "b": jnp.asarray(WORDS)})[0]
    assert not set(then.values()) & set(now.values())


SUMS = jax.jit(
    jax.vmap(lambda row: [jnp.sum(lane, dtype=jnp.uint32) for lane in digest.mixed(row)])
)


def sums(rows: np.ndarray) -> np.ndarray:
    """The two sums of each row of words, by the function that digests mix with."""
    return np.stack(SUMS(rows), -1)


def flips(bit: int, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of 32 random words, and the same with one bit flipped in two words of each."""
    rng = np.random.default_rng(bit)
    rows = rng.integers(0, 2**32, (pairs, 32), np.uint32)
    damaged = rows.copy()
    places = rng.permuted(np.tile(np.arange(32), (pairs, 1)), axis=1)[:, :2]
    for column in (0, 1):
        damaged[np.arange(pairs), places[:, column]] ^= np.uint32(1 << bit)
    return rows, damaged


def test_the_function_of_rows_is_that_of_digests():
    row = np.random.default_rng(9).integers(0, 2**32, 32, np.uint32)
    assert tuple(sums(row[None])[0]) == tuple(map(int, digest._digest(jnp.asarray(row))[:2]))


@pytest.mark.parametrize("bit", [31, 30, 29, 24, 23, 16, 8, 1, 0])
def test_equal_flips_in_two_words(bit):
    rows, damaged = flips(bit, 20_000)
    assert (sums(rows) != sums(damaged)).any(1).all()


def test_no_pair_of_changed_words_in_a_hundred_thousand_is_missed():
    """Of each kind: two words replaced, exchanged, negated, and one moved onto another's value."""
    pairs = 100_000
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((pairs, 16), np.float32).view(np.uint32)
    first, second = rng.permuted(np.tile(np.arange(16), (pairs, 1)), axis=1)[:, :2].T
    each = np.arange(pairs)
    one, other = rows[each, first], rows[each, second]
    random = rng.integers(1, 2**32, (2, pairs), np.uint32)
    kinds = [
        (one ^ random[0], other ^ random[1]),
        (other, one),
        (one ^ SIGN, other ^ SIGN),
        (other ^ SIGN, one ^ SIGN),
        (one + random[0], other - random[0]),
    ]
    before = sums(rows)
    missed = 0
    for a, b in kinds:
        damaged = rows.copy()
        damaged[each, first], damaged[each, second] = a, b
        missed += int((before == sums(damaged)).all(1).sum())
    assert missed == 0


def test_sharding_changes_nothing():
    mesh = sharding.make_mesh(8)
    for algorithm in (1, 2):
        cut = jax.device_put(WORDS, sharding.by_example(mesh))
        assert digests({"a": cut}, algorithm) == digests({"a": jnp.asarray(WORDS)}, algorithm)
    along = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, mesh.axis_names[0]))
    cut = jax.device_put(KERNEL, along)
    assert digests({"a": cut}) == digests({"a": jnp.asarray(KERNEL)})
    compiled = digest._digest.lower(cut).compile().as_text()
    assert "f32[64,64]" not in compiled, "each device reads its own part, and no more"


def test_the_array_is_read_once():
    """So a digest costs as many bytes as the state has; three reductions would read it thrice."""
    array = jax.ShapeDtypeStruct((3, 3, 64, 128), jnp.float32)
    cost = digest._digest.lower(array).compile().cost_analysis()
    assert cost["bytes accessed"] < 1.01 * 3 * 3 * 64 * 128 * 4


def test_names_what_is_not_finite():
    tree = {"good": jnp.ones(3), "bad": jnp.asarray([1.0, jnp.inf]), "count": jnp.arange(3)}
    for algorithm in (1, 2):
        assert digests(tree, algorithm)[1] == ["bad"]


@pytest.mark.parametrize("dtype", ["int4", "complex64"])
def test_a_dtype_of_no_whole_bytes_is_refused_by_name(dtype):
    with pytest.raises(TypeError, match=rf"no digest of a\.b: its dtype is {dtype}"):
        digests({"a": {"b": jnp.zeros(4, dtype)}})
    with pytest.raises(TypeError, match=r"no digest of key: its dtype is key<fry>"):
        digests({"key": jax.random.key(0)})
