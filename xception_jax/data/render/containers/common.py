"""Shared by the checks of all formats: a claim about an image, and the error for a bad file."""

from typing import NamedTuple


class DamagedError(ValueError):
    """The container contradicts itself or its length; the message says how."""


class Claim(NamedTuple):
    """A file's claims about its image, read from its headers only.

    Attributes:
      kind: the format, as `JPEG`.
      height, width: size of the first image, pixels.
      memory: peak bytes that OpenCV's decoder takes, including result and copies.
      encoded: the file, or a shorter one with the same pixels.
      white: the level of white in 16 bits, if the file declares one; 0: all ones.
      deep: whether samples have 16 bits, so that white may be lower than the highest value.
      hint: a level that may be white, if the samples confirm it (`render.levels`); 0: none.
    """

    kind: str
    height: int
    width: int
    memory: int
    encoded: bytes
    white: int = 0
    deep: bool = False
    hint: int = 0

    @property
    def pixels(self) -> int:
        """Number of pixels of the image."""
        return self.height * self.width


# Bytes a pixel of a decode to 8-bit RGB: the result and OpenCV's copy of it. Measured: 6.1 to 6.3
# over all formats that decode row by row.
PLAIN = 6.3


def need(condition: bool, fault: str) -> None:
    """Raises `DamagedError` unless the condition holds."""
    if not condition:
        raise DamagedError(fault)
