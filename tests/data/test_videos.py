"""Frames of a video: those that are asked for, in any order and from several threads."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from xception_jax.data import pictures, videos
from xception_jax.data.batches import Reader
from xception_jax.data.render.decode import Images
from xception_jax.errors import ExampleError, UsageError

LENGTH = 240


def write(path: Path, codec: str = "mp4v") -> Path:
    """Each frame shows its number as eight black or white bars."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 25, (64, 16))
    for number in range(LENGTH):
        bars = np.repeat(np.unpackbits(np.uint8([number])) * 255, 8).astype(np.uint8)
        writer.write(np.broadcast_to(bars[None, :, None], (16, 64, 3)).copy())
    writer.release()
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("videos") / "a clip.mp4")


def shown(pixels: np.ndarray) -> int:
    """The number that an image shows."""
    bars = pixels.mean((0, 2)).reshape(8, -1).mean(1)
    return int(np.packbits(bars > 128)[0])


def numbers(frames) -> list[int]:
    return [shown(frame.video.read(frame.number)) for frame in frames]


def test_each_nth_frame(clip):
    found = pictures.find([str(clip)], every=50)
    assert [str(frame) for frame in found] == [f"{clip} frame {n}" for n in range(0, LENGTH, 50)]
    assert numbers(found) == list(range(0, LENGTH, 50))
    assert pictures.stem(found[1]) == "a clip-000050"
    # Behind those that are read ahead, as heat maps are drawn.
    order = [found[0], found[3], found[1], found[4], found[2]]
    assert numbers(order) == [0, 150, 50, 200, 100]


def test_frames_are_read_by_several_threads(clip):
    frames = videos.Video(str(clip), 1).frames()
    assert len(frames) == LENGTH
    mixed = np.random.default_rng(0).permutation(LENGTH)
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(lambda i: shown(frames[i].video.read(i)), mixed))
    assert read == mixed.tolist()
    images = Images(64, eval_preset="keras", eval_crop=1.0)
    batches = Reader(pictures.source(frames), images).evaluation_batches(batch_size=100)
    rows = np.concatenate([batch["image"] for batch in batches])[:LENGTH]
    assert [shown(row) for row in rows] == list(range(LENGTH))


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mpg", "MPG1"), ("a.avi", "MJPG"), ("a.mkv", "mp4v")]
)
def test_frames_are_counted(tmp_path, name, codec):
    """MPEG states an estimate; a Matroska file that was not closed, as of a browser, nothing."""
    path = write(tmp_path / name, codec)
    if name.endswith(".mkv"):
        content = bytearray(path.read_bytes())
        at = content.index(b"\x44\x89")  # the element of the duration
        content[at : at + 2] = b"\xec\x89"  # becomes void, with its size and its value
        path.write_bytes(content)
        stated = cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT)
        assert stated != LENGTH
    assert numbers(videos.Video(str(path), 80).frames()) == [0, 80, 160]
    assert len(videos.Video(str(path), 1).frames()) == LENGTH


def test_a_video_that_ends_early_or_is_none(clip, tmp_path):
    with pytest.raises(ExampleError, match=f"has no frame {LENGTH + 5}"):
        videos.Video(str(clip), 1).read(LENGTH + 5)
    for content in (b"", b"no video", clip.read_bytes()[:500]):
        (path := tmp_path / "bad.mp4").write_bytes(content)
        with pytest.raises(UsageError, match=r"bad.mp4 is no video that can be decoded"):
            pictures.find([str(path)])
