"""The level of white in a 16-bit image whose file gives a number that may mean it."""

import numpy as np

from xception_jax.data.render.containers import Claim


def white_of(claim: Claim, image: np.ndarray) -> int:
    """The level of white, in 16 bits, that the samples confirm; 0: all ones.

    By the standards, `sBIT` of a PNG is the number of significant bits before the encoder scaled
    the samples to 16 (PNG, third edition, 11.3.2.4). `MaxSampleValue` of a TIFF is a statistic
    (TIFF 6.0, section 8). But many files store `n` bits unscaled and give n in these fields. A file
    counts as unscaled if no sample exceeds 2^n - 1. In a PNG, at least one sample must also be
    different from all results of scaling.

    Args:
      claim: the claim of the image, with `hint`, 2^n - 1.
      image: its samples, uint16, of any shape.
    """
    if int(image.max(initial=0)) > claim.hint:
        return 0
    if claim.kind == "PNG" and _is_scaled(image, claim.hint):
        return 0
    return claim.hint


def _is_scaled(image: np.ndarray, most: int) -> bool:
    """Whether samples up to `most`, 2^n - 1, may result from scaling n bits to 16.

    Encoders scale by division, by a shift only, or by repeating the upper bits (PNG, third edition,
    12.4).
    """
    bits, levels = most.bit_length(), np.arange(most + 1)
    real = levels >> (16 - bits)
    shifted = real << (16 - bits)
    ways = (real * 65_535 + most // 2) // most, shifted, shifted | shifted >> bits
    # Row by row: this needs no large copy and stops early.
    return any(all(fits[row].all() for row in image) for fits in (way == levels for way in ways))
