"""Synthetic JPEGs with the size and the decoding cost of ImageNet's.

They contain noise with a spectrum like that of photographs, 500x375. Their quality is chosen for
files of 110 KB, the mean of ImageNet. The cost of decoding depends on pixels and bits, not on the
content.
"""

from pathlib import Path

import cv2
import numpy as np

HEIGHT, WIDTH = 375, 500
_BYTES = 110_000


def picture(rng: np.random.Generator) -> np.ndarray:
    """uint8 `[375, 500, 3]`: amplitudes fall with the frequency, and channels are correlated."""
    rows, columns = np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)
    amplitude = 1 / np.maximum(np.hypot(rows, columns), 1 / WIDTH)
    noise = np.fft.rfft2(rng.normal(size=(4, HEIGHT, WIDTH))) * amplitude
    grey, *colours = np.fft.irfft2(noise, (HEIGHT, WIDTH))
    channels = np.stack([grey + 0.3 * colour for colour in colours], -1)
    channels = (channels - channels.mean()) / channels.std()
    return np.clip(128 + 55 * channels, 0, 255).astype(np.uint8)


def jpeg(image: np.ndarray) -> bytes:
    """Encodes with colours at half the resolution and the lowest quality that reaches the size."""

    def encoded(quality: int) -> bytes:
        return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()

    low, high = 1, 100
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if len(encoded(middle)) < _BYTES else (low, middle)
    return encoded(low)


def write(folder: Path, count: int = 256, classes: int = 4) -> Path:
    """Writes `folder/train/CLASS/N.jpg`, always the same; does nothing if it is complete."""
    complete = folder / "complete.txt"
    if not complete.exists() or complete.read_text(encoding="utf-8") != str(count):
        rng = np.random.default_rng(0)
        for number in range(count):
            path = folder / "train" / f"class{number % classes}" / f"{number:04}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(picture(rng)))
        complete.write_text(str(count), encoding="utf-8")
    return folder
