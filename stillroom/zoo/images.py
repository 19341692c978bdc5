"""Pictures, wherever they lie: looked through before they are used, then decoded when they are asked for."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from stillroom.errors import Refused

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
GREY = ("1", "L", "LA", "I;16", "I;16B", "I")
DECODED = 256 * 2**20        # bytes of pictures up to which every one is decoded to see whether it is whole
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
EDGE = 4096                  # bytes at either end of a file that go into its digest
SIDEWAYS = (5, 6, 7, 8)      # orientations of a photograph that swap height and width
Source = str | bytes         # a path, or the file's content


class Seen(NamedTuple):
    """A picture that was looked at. `wrong` says why it cannot be used, or is empty."""

    size: tuple[int, int]    # height, width
    grey: bool
    digest: bytes
    wrong: str


def look(sources: Sequence[Source], size: int) -> list[Seen]:
    """Look at every picture, `size` bytes of them: decoded in full when that is little, else its head and its end."""
    numbers = range(len(sources))
    with ThreadPoolExecutor() as pool:
        return [seen for start in numbers[::4096] for seen in
                pool.map(lambda i: _look(sources[i], size <= DECODED), numbers[start : start + 4096])]


def read(sources: Sequence[Source], shape: tuple[int, int, int], i: int) -> Tensor:
    """One of many pictures, decoded."""
    return decode(sources[i], shape)


def decode(source: Source, shape: tuple[int, int, int]) -> Tensor:
    """A picture as [channels, height, width] in [0, 1]: upright, cut to the shape's proportions around its middle, resized.
    Raises `Refused` with its name when it is corrupt."""
    channels, height, width = shape
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as picture:
            picture.draft(None, (2 * max(height, width),) * 2)      # a large JPEG is decoded at a half or a quarter
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith("I"):                        # 16 bits a pixel
                upright = Image.fromarray((np.asarray(upright, dtype=np.float32) / 257).round().astype(np.uint8))
            flat = upright.convert("L" if channels == 1 else "RGB")
            fitted = flat if flat.size == (width, height) else ImageOps.fit(flat, (width, height), Image.Resampling.BICUBIC)
    except Exception as error:
        raise Refused(f"{_name(source)} cannot be read ({error})",
                      "repair or remove it, or leave such images out: skip_corrupt") from error
    array = np.asarray(fitted, dtype=np.uint8)
    return torch.from_numpy(array.reshape(height, width, channels).copy()).permute(2, 0, 1).float() / 255


def fit(x: Tensor, size: tuple[int, int] | None, channels: int | None) -> Tensor:
    """Images [samples, channels, height, width] in [0, 1] cut and resized to `size`, and made grey or coloured."""
    if channels is not None and channels != x.shape[1]:
        if channels == 1 and x.shape[1] == 3:
            x = (x * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
        elif x.shape[1] == 1:
            x = x.expand(-1, channels, -1, -1).contiguous()
        else:
            raise Refused(f"images of {x.shape[1]} channels cannot be made into {channels}", f"channels=1, or {x.shape[1]}")
    if size is None or size == tuple(x.shape[2:]):
        return x
    height, width = x.shape[2:]
    scale = min(height / size[0], width / size[1])
    keep_h, keep_w = round(size[0] * scale), round(size[1] * scale)
    top, left = (height - keep_h) // 2, (width - keep_w) // 2
    middle = x[:, :, top : top + keep_h, left : left + keep_w]
    return torch.cat([F.interpolate(part, size=size, mode="bilinear", antialias=True) for part in middle.split(1024)])


def sides(told: Any, size: tuple[int, int] | None, asked: Any) -> tuple[int, int] | None:
    """Height and width as a name says them, `?size=240` or `?size=(240,320)`, else as the run does. Raises `Refused`."""
    if told is None:
        return size
    found = (told, told) if isinstance(told, int) else told
    if not isinstance(found, tuple) or len(found) != 2 or not all(isinstance(n, int) and n > 0 for n in found):
        raise Refused(f"{asked}: size={told!r}", "one whole number, or height and width: ?size=(240,320)")
    return found


def settle(seen: Sequence[Seen], size: tuple[int, int] | None, channels: int | None, name: str) -> tuple[int, int, int]:
    """The shape of every sample: as asked, else what all pictures share. Raises `Refused` when their sizes differ."""
    sizes = {s.size for s in seen}
    if size is None and len(sizes) > 1:
        one, other = sorted(sizes)[0], sorted(sizes)[-1]
        raise Refused(f"the images of {name} differ in size, from {one[0]} × {one[1]} to {other[0]} × {other[1]}",
                      "say one: size=224")
    if channels not in (None, 1, 3):
        raise Refused(f"images have 1 or 3 channels, not {channels}", "channels=1 or channels=3")
    return (channels or (1 if all(s.grey for s in seen) else 3), *(size or next(iter(sizes))))


def whole(sources: Sequence[Source], size: int, skip: bool, name: str,
          names: Callable[[int], str]) -> tuple[list[Seen], list[int]]:
    """What was seen, and the numbers of those that can be used. Raises `Refused` naming those that cannot, unless `skip`."""
    seen = look(sources, size)
    bad = [f"{names(i)} ({s.wrong})" for i, s in enumerate(seen) if s.wrong]
    if bad and not skip:
        some = "; ".join(bad[:5]) + (f"; … {len(bad) - 5} more" if bad[5:] else "")
        raise Refused(f"{len(bad)} of {len(seen)} images of {name} cannot be read: {some}",
                      "repair or remove them, or leave them out: skip_corrupt=True, --skip-corrupt")
    good = [i for i, s in enumerate(seen) if not s.wrong]
    if not good:
        raise Refused(f"{name} holds no image that can be read", f"images end in {', '.join(SUFFIXES)}")
    return seen, good


def _look(source: Source, fully: bool) -> Seen:
    try:
        length = len(source) if isinstance(source, bytes) else os.path.getsize(source)
        head, tail = _edges(source, length)
    except OSError as error:
        return Seen((0, 0), False, b"", error.strerror or "cannot be opened")
    digest = blake2b(head + tail + str(length).encode(), digest_size=8).digest()
    if not length:
        return Seen((0, 0), False, digest, "empty")
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as picture:
            width, height = picture.size
            size = (width, height) if picture.getexif().get(0x0112) in SIDEWAYS else (height, width)
            grey = picture.mode in GREY
            if picture.mode == "F":
                return Seen(size, grey, digest, "floating-point pixels")
            ended = ENDS.get(picture.format or "", b"") in tail
            if fully or not ended:                   # a photograph may go on after its end, with a film of its making
                picture.draft(None, (64, 64))
                picture.load()
            return Seen(size, grey, digest, "" if ended or picture.format == "JPEG" else "truncated")
    except Exception as error:
        unknown = isinstance(error, Image.UnidentifiedImageError)
        return Seen((0, 0), False, digest, "no image" if unknown else str(error) or type(error).__name__)


def _edges(source: Source, length: int) -> tuple[bytes, bytes]:
    if isinstance(source, bytes):
        return source[:EDGE], source[-EDGE:]
    with open(source, "rb") as file:
        head = file.read(EDGE)
        file.seek(max(0, length - EDGE))
        return head, file.read(EDGE)


def _name(source: Source) -> str:
    return "an image" if isinstance(source, bytes) else str(Path(source))
