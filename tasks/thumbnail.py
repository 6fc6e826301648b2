"""`tasks.thumbnail`: a small PNG of an image."""

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from billiard.exceptions import SoftTimeLimitExceeded

from .application import app
from .regular import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is read. Not all that Pillow could: for EPS it would start another program."""

LARGEST = 4096
"""Pixels of a thumbnail's longer side, at most."""


class ImageError(ValueError):
    """A file is no image that can be read here, or is too large to be unpacked safely."""


@app.task(name="tasks.thumbnail")
def thumbnail(path: str, size: int = 256, destination: str | None = None) -> dict[str, Any]:
    """Write a PNG that fits into a square of `size` pixels; return its path, width and height.

    Args:
        path: The image; of several frames, the first counts.
        size: Pixels, 1 to 4096. A smaller image is not enlarged.
        destination: The file to write, which appears whole or not at all; None: beside the image,
            ``.thumbnail.png`` appended.

    Raises:
        ImageError: not an image, broken, or over Pillow's limit of pixels.
        OSError: it cannot be read, or the thumbnail not be written.
    """
    if not isinstance(size, int) or not 0 < size <= LARGEST:
        raise ValueError(f"size: {size!r}; accepted: 1 to {LARGEST} pixels")
    with open_regular(path) as file:
        small = _shrunk(path, file, size)
    target = Path(destination or f"{path}.thumbnail.png")
    _save(small, target)
    return {"path": str(target), "width": small.width, "height": small.height}


def _shrunk(path: str, file: BinaryIO, size: int) -> "Image":
    # Pillow is the demo's, not the library's: a worker without it has the other tasks all the same.
    from PIL import Image, ImageOps

    try:
        with Image.open(file, formats=FORMATS) as image:
            # Pillow itself only warns of up to twice its limit.
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise ImageError(f"{image.width:,} by {image.height:,} pixels are too many")
            # A JPEG is read at a fraction of its size from the start.
            image.draft("RGB", (size, size))
            small = image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGBA")
            small.thumbnail((size, size))
            return ImageOps.exif_transpose(small)
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:
        # Pillow's decoders raise whatever the bytes lead them to.
        raise ImageError(f"no thumbnail of {path!r}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if type(error).__name__ == "UnidentifiedImageError":
        return f"not an image in one of the formats {', '.join(FORMATS)}"
    return str(error) or type(error).__name__


def _save(image: "Image", target: Path) -> None:
    unfinished = target.parent / f".{uuid.uuid4()}.unfinished"
    try:
        image.save(unfinished, format="PNG")
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
