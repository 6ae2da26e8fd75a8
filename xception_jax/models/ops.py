"""Operations whose fastest form depends on the platform. The layers call these, nobody else.

TPU and GPU get XLA's own operations. On CPU some of those are slower by an order of magnitude, and
forms made of what XLA compiles well there take their place: passes over plain slices, which it
vectorizes, and products of matrices. All forms have the semantics and the gradients of the plain
operation, and keep the batch axis, so that a step on many devices stays free of communication.
docs/speed.md has the measurements, also of what was tried and lost. Reverse-mode derivatives only.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_SPATIAL = (1, 2)

Pads = Sequence[tuple[int, int]]


def _by_platform(
    default: Callable, cpu: Callable, cpu_gradient: Callable | None = None
) -> Callable[..., jax.Array]:
    """One operation of two forms, each with its own gradient.

    Args:
      default, cpu: functions of the same arrays.
      cpu_gradient: of these arrays and the result's cotangent; theirs in turn. None: JAX' own.
    """

    def gradient_of(form):
        return lambda *args_and_g: jax.vjp(form, *args_and_g[:-1])[1](args_and_g[-1])

    @jax.custom_vjp
    def operation(*args):
        return lax.platform_dependent(*args, cpu=cpu, default=default)

    def backward(args, g):
        return lax.platform_dependent(
            *args, g, cpu=cpu_gradient or gradient_of(cpu), default=gradient_of(default)
        )

    operation.defvjp(lambda *args: (operation(*args), args), backward)
    return operation


def _pads(image: Sequence[int], window: Sequence[int], stride: int, padding: str) -> Pads:
    """What is padded before and after rows and columns, see `conv`."""
    if padding == "SYMMETRIC":
        return [(side // 2, side // 2) for side in window]
    return lax.padtype_to_pads(image, window, (stride, stride), padding)


def _padded(x: jax.Array, pads: Pads, fill: float = 0.0) -> jax.Array:
    """`jnp.pad`, stored: XLA CPU would fuse a pad with its readers, which are then not vectorized.

    An update of a slice is never fused with its readers.
    """
    batch, height, width, channels = x.shape
    (top, bottom), (left, right) = pads
    shape = (batch, height + top + bottom, width + left + right, channels)
    return lax.dynamic_update_slice(jnp.full(shape, fill, x.dtype), x, (0, top, left, 0))


def _taps(
    padded: jax.Array, window: Sequence[int], stride: int
) -> dict[tuple[int, int], jax.Array]:
    """For each position in the window, what it sees of the padded image in all its places.

    Arrays `[batch, height_out, width_out, channels]`.
    """
    height, width = ((padded.shape[1 + k] - window[k]) // stride * stride + 1 for k in (0, 1))
    return {
        (i, j): padded[:, i : i + height : stride, j : j + width : stride]
        for i in range(window[0])
        for j in range(window[1])
    }


# Depthwise convolution ------------------------------------------------------------------------


def _relu_if(relu: bool, x: jax.Array) -> jax.Array:
    return jax.nn.relu(x) if relu else x


def _depthwise_grouped(
    stride: int, relu: bool, padding: str, x: jax.Array, kernel: jax.Array
) -> jax.Array:
    """XLA's own grouped convolution: best on TPU and GPU, about 70 times too slow on CPU."""
    return _xla_conv(stride, padding, x.shape[-1], _relu_if(relu, x), kernel)


def _depthwise_taps(
    stride: int, relu: bool, padding: str, x: jax.Array, kernel: jax.Array
) -> jax.Array:
    """One multiply-add a tap, in one pass over the padded image."""
    pads = _pads(x.shape[1:3], kernel.shape[:2], stride, padding)
    return _weighted(_padded(_relu_if(relu, x), pads), kernel, stride).astype(x.dtype)


def _weighted(padded: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """The sum of the taps, each times its weight of every channel; float32."""
    taps = _taps(padded, kernel.shape[:2], stride)
    weights = kernel[:, :, 0].astype(jnp.float32)
    return sum((tap * weights[position] for position, tap in taps.items()), start=jnp.float32(0))


def _depthwise_gradient(stride, relu, padding, x, kernel, g):
    pads = _pads(x.shape[1:3], kernel.shape[:2], stride, padding)
    of_x = _depthwise_input_gradient(g, kernel, stride, pads, x.shape)
    if relu:
        of_x = jnp.where(x > 0, of_x, 0)
    padded = _padded(_relu_if(relu, x), pads)
    of_kernel = _depthwise_kernel_gradient(padded, g, kernel.shape[:2], stride)
    return of_x.astype(x.dtype), of_kernel.astype(kernel.dtype)


@cache
def _depthwise(stride: int, relu: bool, padding: str) -> Callable[..., jax.Array]:
    forms = _depthwise_grouped, _depthwise_taps, _depthwise_gradient
    return _by_platform(*(partial(form, stride, relu, padding) for form in forms))


def _depthwise_input_gradient(g, kernel, stride: int, pads: Pads, shape) -> jax.Array:
    """The same taps of `g` with the kernel turned round; between strides `g` is zero."""
    if stride > 1:
        between = (0, 0, stride - 1)
        g = lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), between, between, (0, 0, 0)))
    before = [kernel.shape[k] - 1 - pads[k][0] for k in (0, 1)]
    after = [shape[1 + k] + kernel.shape[k] - 1 - before[k] - g.shape[1 + k] for k in (0, 1)]
    return _weighted(_padded(g, list(zip(before, after, strict=True))), kernel[::-1, ::-1])


def _depthwise_kernel_gradient(padded, g, window, stride: int) -> jax.Array:
    """A scan over image rows that carries one accumulator a tap: three to four times faster than
    one reduction a tap.
    """
    channels, height = g.shape[-1], g.shape[1]

    def products(row):
        of_g = lax.dynamic_index_in_dim(g, row, axis=1, keepdims=False)
        rows = lax.dynamic_slice_in_dim(padded, row * stride, window[0], axis=1)
        taps = _taps(rows, window, stride).values()
        return [tap[:, 0].astype(jnp.float32) * of_g for tap in taps]

    def add_row(totals, row):
        return jax.tree.map(jnp.add, totals, products(row)), None

    totals, _ = lax.scan(add_row, products(0), jnp.arange(1, height))
    sums = jnp.stack([total.sum((0, 1)) for total in totals])
    return sums.reshape(*window, 1, channels)


def depthwise(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    relu: bool = False,
    padding: str = "SAME",
) -> jax.Array:
    """Depthwise convolution, one filter a channel.

    Args:
      x: `[batch, height, width, channels]`.
      kernel: `[rows, columns, 1, channels]` of the dtype of `x`.
      stride: of rows and columns.
      relu: take the convolution of `relu(x)`, which costs nothing here: on CPU the image is
        stored anew in any case.
      padding: see `conv`.

    Returns:
      `[batch, height_out, width_out, channels]` of the dtype of `x`.
    """
    return _depthwise(stride, relu, padding)(x, kernel)


# Dense convolution ----------------------------------------------------------------------------


def _xla_conv(stride: int, padding: str, groups: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    pads = _pads(x.shape[1:3], kernel.shape[:2], stride, padding)
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=_DIMENSIONS,
        feature_group_count=groups,
    )  # fmt: skip


def _dense(stride: int, padding: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _xla_conv(stride, padding, 1, x, kernel)


def _conv_gradient(stride, padding, x, kernel, g):
    (of_x,) = jax.vjp(lambda x: _dense(stride, padding, x, kernel), x)[1](g)
    pads = _pads(x.shape[1:3], kernel.shape[:2], stride, padding)
    padded = _padded(x, pads) if any(map(any, pads)) else x
    return of_x, _conv_kernel_gradient(padded, g, kernel, stride)


@cache
def _conv(stride: int, padding: str) -> Callable[..., jax.Array]:
    form = partial(_dense, stride, padding)
    return _by_platform(form, form, partial(_conv_gradient, stride, padding))


def _conv_kernel_gradient(padded, g, kernel, stride: int) -> jax.Array:
    """A scan over image rows, each a product of matrices: 5 times faster than XLA CPU's own."""
    height, window = g.shape[1], kernel.shape[:2]

    def product(row):
        of_g = lax.dynamic_index_in_dim(g, row, axis=1, keepdims=False)
        rows = lax.dynamic_slice_in_dim(padded, row * stride, window[0], axis=1)
        taps = _taps(rows, window, stride).values()
        patches = jnp.concatenate([tap[:, 0] for tap in taps], axis=-1)
        return jnp.einsum("nwi,nwo->nio", patches, of_g, preferred_element_type=jnp.float32)

    def add_row(total, row):
        return total + product(row), None

    total, _ = lax.scan(add_row, product(0), jnp.arange(1, height))
    return total.sum(0).reshape(kernel.shape).astype(kernel.dtype)


def conv(x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: str = "SAME") -> jax.Array:
    """Dense convolution.

    Args:
      x: `[batch, height, width, channels_in]`.
      kernel: `[rows, columns, channels_in, channels_out]` of the dtype of `x`.
      stride: of rows and columns.
      padding: VALID; SAME, as TensorFlow's: no more than the windows need, the odd one after the
        image; or SYMMETRIC, as is usual in PyTorch: half of an odd window on each side. The two
        differ where the stride is above 1 and the image's side even.

    Returns:
      `[batch, height_out, width_out, channels_out]` of the dtype of `x`.
    """
    return _conv(stride, padding)(x, kernel)


# Grouped convolution --------------------------------------------------------------------------


def _grouped_xla(groups: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _xla_conv(1, "SAME", groups, x, kernel)


def _grouped_products(groups: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A product of matrices for each group."""
    window = kernel.shape[:2]
    taps = _taps(_padded(x, _pads(x.shape[1:3], window, 1, "SAME")), window, 1).values()
    patches = jnp.stack([tap.reshape(-1, groups, kernel.shape[2]) for tap in taps])
    by_group = kernel.reshape(len(taps), kernel.shape[2], groups, -1)
    y = jnp.einsum("kpgi,kigo->pgo", patches, by_group, preferred_element_type=jnp.float32)
    return y.reshape(*x.shape[:3], -1).astype(x.dtype)


@cache
def _grouped(groups: int) -> Callable[..., jax.Array]:
    return _by_platform(partial(_grouped_xla, groups), partial(_grouped_products, groups))


def grouped(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    """A convolution of each of `groups` equal runs of channels by itself, stride 1, SAME.

    Args:
      x: `[batch, height, width, channels_in]`.
      kernel: `[rows, columns, channels_in / groups, channels_out]` of the dtype of `x`.
      groups: divides both numbers of channels.

    Returns:
      `[batch, height, width, channels_out]` of the dtype of `x`.
    """
    if groups == 1:
        return conv(x, kernel)
    return _grouped(groups)(x, kernel)


# Pointwise convolution ------------------------------------------------------------------------


def _pointwise_product(stride: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A product of two matrices: on CPU 2.4 times faster backwards than a convolution, and
    without the transposes of a four-dimensional `dot`.
    """
    x = x[:, ::stride, ::stride]
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def _pointwise_conv(stride: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """XLA TPU gives it the layout of the depthwise convolutions around it.

    A product of matrices costs two copies a layer there, and a strided slice before it a gradient
    by interior padding: a seventh of the whole step.
    """
    return _dense(stride, "VALID", x, kernel[None, None])


@cache
def _pointwise(stride: int) -> Callable[..., jax.Array]:
    return _by_platform(partial(_pointwise_conv, stride), partial(_pointwise_product, stride))


def pointwise(x: jax.Array, kernel: jax.Array, *, stride: int = 1) -> jax.Array:
    """A 1x1 convolution, SAME.

    Args:
      x: `[batch, height, width, channels_in]`.
      kernel: `[channels_in, channels_out]` of the dtype of `x`.
      stride: of rows and columns.

    Returns:
      `[batch, ceil(height / stride), ceil(width / stride), channels_out]` of the dtype of `x`.
    """
    return _pointwise(stride)(x, kernel)


# Separable convolution ------------------------------------------------------------------------

# A TPU moves tensors in lanes of 128 channels: fewer cost as much.
_LANES = 128


def separable(
    x: jax.Array, depthwise_kernel: jax.Array, pointwise_kernel: jax.Array, *, relu: bool = False
) -> jax.Array:
    """A depthwise and a pointwise convolution, SAME.

    Where at most half of a TPU's lanes are in use, it is one dense convolution there: what the
    depthwise one would write and read half empty costs more than the multiplications
    (3.2 M of the 34.4 M cycles that the stem and block 2 take at 64 images a v5e chip).

    Args:
      x: `[batch, height, width, channels_in]`; the result has its dtype.
      depthwise_kernel: float32 `[rows, columns, 1, channels_in]`.
      pointwise_kernel: float32 `[channels_in, channels_out]`.
      relu: take the convolution of `relu(x)`.
    """
    if 2 * x.shape[-1] > _LANES:
        return _separable_two(relu, x, depthwise_kernel, pointwise_kernel)
    return lax.platform_dependent(
        x, depthwise_kernel, pointwise_kernel,
        tpu=partial(_separable_dense, relu),
        default=partial(_separable_two, relu),
    )  # fmt: skip


def _separable_two(relu, x, depthwise_kernel, pointwise_kernel):
    x = depthwise(x, depthwise_kernel.astype(x.dtype), relu=relu)
    return pointwise(x, pointwise_kernel.astype(x.dtype))


def _separable_dense(relu, x, depthwise_kernel, pointwise_kernel):
    with jax.named_scope("dense"):
        kernel = jnp.swapaxes(depthwise_kernel, 2, 3) * pointwise_kernel
        return _dense(1, "SAME", _relu_if(relu, x), kernel.astype(x.dtype))


# Max pooling ----------------------------------------------------------------------------------

_WINDOW, _STRIDE = (3, 3), 2


def _pool_windows(padding: str, x: jax.Array) -> jax.Array:
    pads = [(0, 0), *_pads(x.shape[1:3], _WINDOW, _STRIDE, padding), (0, 0)]
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *_WINDOW, 1), (1, _STRIDE, _STRIDE, 1), pads)


def _pool_taps(padding: str, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The maximum of each window, and int8 which of its taps was the first to have it."""
    pads = _pads(x.shape[1:3], _WINDOW, _STRIDE, padding)
    taps = list(_taps(_padded(x, pads, -jnp.inf), _WINDOW, _STRIDE).values())
    largest = reduce(jnp.maximum, taps)
    winner = jnp.full(largest.shape, -1, jnp.int8)
    for k, tap in reversed(list(enumerate(taps))):
        winner = jnp.where(tap == largest, jnp.int8(k), winner)
    return largest, winner


def _pool_gradient(padding: str, x: jax.Array, winner: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    """Each pixel asks the up to four windows that see it whether it won there: 20 times faster
    on CPU than XLA's select-and-scatter.

    The pixels `2a + p`, of one parity p, see the same windows `a + (p + pad - tap) / 2`, so the
    gradient is put together from four images of every other row and column.
    """
    batch, height, width, channels = x.shape
    (top, _), (left, _) = _pads((height, width), _WINDOW, _STRIDE, padding)
    # One row and column more than there are windows: XLA would see through a slice of the whole.
    rows, columns = height // 2 + 2, width // 2 + 2
    windows = [(1, rows - winner.shape[1] + 1), (1, columns - winner.shape[2] + 1)]
    winner, g = _padded(winner, windows, -1), _padded(g, windows)
    image = jnp.zeros((batch, rows, 2, columns, 2, channels), g.dtype)
    for p, q in np.ndindex(2, 2):
        part = jnp.zeros((batch, rows, columns, channels), g.dtype)
        for k, (i, j) in enumerate(np.ndindex(_WINDOW)):
            (u, odd_row), (v, odd_column) = divmod(p + top - i, 2), divmod(q + left - j, 2)
            if not odd_row and not odd_column:
                near = np.s_[:, 1 + u : 1 + u + rows, 1 + v : 1 + v + columns]
                part += jnp.where(winner[near] == k, g[near], 0)
        image = lax.dynamic_update_slice(image, part[:, :, None, :, None], (0, 0, p, 0, q, 0))
    return (image.reshape(batch, 2 * rows, 2 * columns, channels)[:, :height, :width],)


@cache
def _max_pool(padding: str) -> Callable[[jax.Array], jax.Array]:
    windows = partial(_pool_windows, padding)

    @jax.custom_vjp
    def pool(x):
        return forward(x)[0]

    def forward(x):
        def default(x):
            largest = windows(x)
            return largest, jnp.zeros(largest.shape, jnp.int8)  # not read, so not made

        largest, winner = lax.platform_dependent(
            x, cpu=partial(_pool_taps, padding), default=default
        )
        return largest, (x, winner)

    def backward(residuals, g):
        def default(x, winner, g):
            return jax.vjp(windows, x)[1](g)

        gradient = partial(_pool_gradient, padding)
        return lax.platform_dependent(*residuals, g, cpu=gradient, default=default)

    pool.defvjp(forward, backward)
    return pool


def max_pool(x: jax.Array, *, padding: str = "SAME") -> jax.Array:
    """3x3 max pooling, stride 2, over `[batch, height, width, channels]`.

    The gradient goes to the first of equal maxima, in the order of rows.

    Args:
      x: `[batch, height, width, channels]`.
      padding: see `conv`; what is padded is never the maximum.
    """
    return _max_pool(padding)(x)


# Average pooling ------------------------------------------------------------------------------


def _sum_windows(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return lax.reduce_window(x, 0.0, lax.add, (1, *_WINDOW, 1), (1, 1, 1, 1), "SAME")


def _sum_taps(x: jax.Array) -> jax.Array:
    pads = _pads(x.shape[1:3], _WINDOW, 1, "SAME")
    taps = _taps(_padded(x.astype(jnp.float32), pads), _WINDOW, 1).values()
    return sum(taps, start=jnp.float32(0))


def _sum_gradient(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    """The windows that see a pixel lie around it as the pixels lie in a window."""
    return (_sum_taps(g).astype(x.dtype),)


_sum_pool = _by_platform(_sum_windows, _sum_taps, _sum_gradient)


def average_pool(x: jax.Array, *, count_padding: bool = False) -> jax.Array:
    """3x3 average pooling, stride 1, SAME.

    Args:
      x: `[batch, height, width, channels]`.
      count_padding: divide by 9 at the border too, as PyTorch does unless told otherwise; else by
        the number of the window's pixels that are of the image, as TensorFlow does.
    """
    seen = 9.0 if count_padding else _sum_pool(jnp.ones((1, *x.shape[1:3], 1)))
    return (_sum_pool(x) / seen).astype(x.dtype)


# Batch normalization --------------------------------------------------------------------------


def _moments_two_passes(x: jax.Array, guess: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The plain mean and variance. On CPU each sum is a pass of its own anyway."""
    axes = tuple(range(1, x.ndim - 1))
    x = x.astype(jnp.float32)
    mean = x.mean(axes)
    return mean, jnp.square(x - _over(mean, x)).mean(axes)


def _moments_one_pass(x: jax.Array, guess: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both sums at once, fused into the convolution that makes `x`.

    E[x^2] - E[x]^2 loses all precision where the mean is far above the deviation, so a guess of
    the mean is taken off first.
    """
    axes = tuple(range(1, x.ndim - 1))
    centred = x.astype(jnp.float32) - guess
    mean = centred.mean(axes)
    var = jnp.square(centred).mean(axes) - jnp.square(mean)
    return mean + guess, jnp.maximum(var, 0)


@jax.custom_vjp
def moments(x: jax.Array, guess: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean and the (biased) variance of each run of examples, in float32.

    Their gradient is one multiply-add over `x`, which XLA fuses with that of `affine`.

    Args:
      x: `[runs, examples, ..., channels]`.
      guess: float32 `[channels]`, near the mean, for precision's sake; it has no gradient.

    Returns:
      Two arrays `[runs, channels]`.
    """
    return lax.platform_dependent(x, guess, cpu=_moments_two_passes, default=_moments_one_pass)


def _moments_forward(x, guess):
    mean, var = moments(x, guess)
    return (mean, var), (x, mean)


def _moments_backward(residuals, cotangents):
    x, mean = residuals
    of_mean, of_var = cotangents
    count = x.size // mean.size
    slope = 2 * of_var / count
    offset = of_mean / count - slope * mean
    gradient = x.astype(jnp.float32) * _over(slope, x) + _over(offset, x)
    return gradient.astype(x.dtype), jnp.zeros_like(mean[0])


moments.defvjp(_moments_forward, _moments_backward)


def _over(of_runs: jax.Array, x: jax.Array) -> jax.Array:
    """`[runs, channels]` with axes of 1 in between, to be broadcast over `x`."""
    return of_runs.reshape(of_runs.shape[0], *(1,) * (x.ndim - 2), of_runs.shape[-1])


def affine(x: jax.Array, factor: jax.Array, offset: jax.Array) -> jax.Array:
    """`x * factor + offset` in float32, returned in the dtype of `x`.

    Args:
      x: `[runs, examples, ..., channels]`.
      factor, offset: float32 `[runs, channels]`, or 1 for `runs`.
    """
    return (x.astype(jnp.float32) * _over(factor, x) + _over(offset, x)).astype(x.dtype)
