"""Draws where an image speaks for its class over the picture that it was made of."""

import cv2
import numpy as np

from xception_jax.data.render import presets
from xception_jax.data.render.decode import Images

# Of the longer side of a drawn picture, pixels.
_LONGEST = 800
# Share of the heat's colours; the rest is the picture.
_ALPHA = 0.5


def draw(picture: np.ndarray, heat: np.ndarray, images: Images) -> np.ndarray:
    """The picture under the colours of the heat, from blue (none) to red (the most).

    What the model has not seen, since evaluation crops it, is darker and without colours.

    Args:
      picture: uint8 `[height, width, 3]`, RGB.
      heat: float32 `[rows, columns]`, at least 0, of the image that `images` makes of it.
      images: how.

    Returns:
      uint8 `[height, width, 3]`, RGB, the longer side at most 800 pixels.
    """
    scale = min(1.0, _LONGEST / max(picture.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    drawn = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    top, left, rows, columns = (
        round(scale * place) for place in presets.seen(images, *picture.shape[:2])
    )
    rows, columns = max(1, min(rows, height - top)), max(1, min(columns, width - left))
    highest = float(heat.max())
    grown = cv2.resize(heat / highest if highest > 0 else heat, (columns, rows))
    levels = np.round(255 * np.clip(grown, 0, 1)).astype(np.uint8)
    colours = cv2.applyColorMap(levels, cv2.COLORMAP_TURBO)[:, :, ::-1]
    inside = (slice(top, top + rows), slice(left, left + columns))
    seen = drawn[inside]
    drawn = drawn // 2
    drawn[inside] = np.round((1 - _ALPHA) * seen + _ALPHA * colours).astype(np.uint8)
    return drawn
