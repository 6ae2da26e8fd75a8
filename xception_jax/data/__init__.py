"""From images on disk to batches on the devices. Knows nothing of models."""

import os

# OpenCV reads it once, when it is imported, and refuses a larger image before it takes memory for
# its pixels. A decode takes at most 846 MB then, see `decode.examine` and docs/data.md.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**27))
