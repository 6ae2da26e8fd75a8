"""From images on disk to batches on the devices. Knows nothing of models."""

import os

# OpenCV reads it once, when it is imported, and refuses a larger image before it takes memory for
# its pixels: at most 400 MB, in place of the 3 GB of OpenCV's own limit.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**27))
