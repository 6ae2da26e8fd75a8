"""What the checks of all formats share: a claim about an image, and the refusal of a file."""

from typing import NamedTuple


class DamagedError(ValueError):
    """The container contradicts itself or its length; the message says how."""


class Claim(NamedTuple):
    """What a file says about its image, read from its headers alone.

    Attributes:
      kind: its format, as `JPEG`.
      height, width: of the first image, pixels.
      memory: bytes that OpenCV's decoder takes at most at a time, result and copies included.
      encoded: the file, or a shorter one with the same pixels.
      white: the level of white in 16 bits, where the file declares one; 0: all ones.
      deep: whether 16 bits are stored a sample, so that white may be lower than they can tell.
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
        """Of the image."""
        return self.height * self.width


# Bytes a pixel that a decode of 8-bit RGB takes: the result, and OpenCV's copy of it. Measured
# 6.1 to 6.3, over all formats that decode row by row.
PLAIN = 6.3


def need(condition: bool, fault: str) -> None:
    """Raises `DamagedError` unless the condition holds."""
    if not condition:
        raise DamagedError(fault)
