"""Pictures of videos: every n-th frame, decoded once in the order of the video."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from xception_jax.errors import ExampleError, UsageError
from xception_jax.utils.text import as_utf8, printable

# Of the usual files; what is in them is decoded by the FFmpeg in OpenCV.
SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
# Frames that may be decoded before they are asked for; several threads read side by side.
_MOST_AHEAD = 64


class Video:
    """A video file of which some frames are read, mostly in their order.

    Args:
      path: of the file.
      every: the first frame and each `every`-th one after it are wanted.

    Raises:
      UsageError: it is no video that can be decoded.
    """

    def __init__(self, path: str, every: int):
        self.path, self._every = path, every
        self._lock = threading.Lock()
        # Counted: what files state is often an estimate, or missing in recordings of browsers.
        capture, self._length = _opened(path), 0
        while capture.grab():
            self._length += 1
        capture.release()
        if not self._length:
            raise UsageError(f"{printable(path)} has no frame that can be decoded")
        self._readers = [_Reader(path, every)]

    def frames(self) -> Sequence["Frame"]:
        """The wanted frames."""
        return [Frame(self, number) for number in range(0, self._length, self._every)]

    def read(self, number: int) -> np.ndarray:
        """A frame, uint8 `[height, width, 3]`, RGB, rotated as the file says.

        Raises:
          ExampleError: it cannot be decoded.
        """
        with self._lock:
            # Two at most: heat maps are drawn behind the frames that are read ahead.
            found = [each for each in self._readers if each.can_reach(number)]
            if not found:
                found = [_Reader(self.path, self._every)]
                self._readers = [self._readers[0], *found]
            return max(found, key=lambda each: each.next).read(number)


class _Reader:
    """Reads a video once, from its first frame on."""

    def __init__(self, path: str, every: int):
        self.path, self._every, self.next = path, every, 0
        self._ahead: dict[int, np.ndarray] = {}
        self.capture = _opened(path)

    def can_reach(self, number: int) -> bool:
        """Whether a frame is still to come, or was passed for another one."""
        return number >= self.next or number in self._ahead

    def read(self, number: int) -> np.ndarray:
        """A frame that can be reached; it can be read once."""
        while self.next <= number:
            if not self.capture.grab():
                raise ExampleError(as_utf8(self.path), f"has no frame {number}")
            place, self.next = self.next, self.next + 1
            # Those between are asked for by other threads.
            if place % self._every == 0 and number - place < _MOST_AHEAD * self._every:
                decoded, pixels = self.capture.retrieve()
                if decoded:
                    self._ahead[place] = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        if number not in self._ahead:
            raise ExampleError(as_utf8(self.path), f"frame {number} cannot be decoded")
        return self._ahead.pop(number)


def _opened(path: str) -> cv2.VideoCapture:
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise UsageError(f"{printable(path)} is no video that can be decoded")
    return capture


@dataclass(frozen=True)
class Frame:
    """A picture: one frame of a video, counted from 0."""

    video: Video
    number: int

    def __str__(self) -> str:
        return f"{self.video.path} frame {self.number}"

    @property
    def stem(self) -> str:
        """A part of a file's name for this picture."""
        return f"{Path(self.video.path).stem}-{self.number:06}"
