"""`tasks.thumbnail`: a small PNG of an image."""

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from billiard.exceptions import SoftTimeLimitExceeded

from .application import app
from .regular_file import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The accepted formats. Pillow has more, but starts another program for EPS."""

MAX_SIZE = 4096
"""Maximum size of a thumbnail in pixels."""


class ImageError(ValueError):
    """A file is not an accepted image, or it is too large to be decoded safely."""


@app.task(name="tasks.thumbnail")
def thumbnail(path: str, size: int = 256, destination: str | None = None) -> dict[str, Any]:
    """Write a PNG that fits into a square of `size` pixels; return its path, width and height.

    Args:
        path: The image; of an animation, the first frame is used.
        size: Pixels, 1 to 4096. A smaller image is not enlarged.
        destination: The file to write, which is replaced atomically. Default: ``.thumbnail.png`` appended to
            the path.

    Raises:
        ImageError: not an image, damaged, or above Pillow's limit of pixels.
        OSError: the image cannot be read, or the thumbnail cannot be written.
    """
    if not isinstance(size, int) or not 0 < size <= MAX_SIZE:
        raise ValueError(f"size: {size!r}; accepted: 1 to {MAX_SIZE} pixels")
    with open_regular(path) as file:
        small = _shrink(path, file, size)
    target = Path(destination or f"{path}.thumbnail.png")
    _save(small, target)
    return {"path": str(target), "width": small.width, "height": small.height}


def _shrink(path: str, file: BinaryIO, size: int) -> "Image":
    # Only the demo needs Pillow: a worker without it runs the other tasks.
    from PIL import Image, ImageOps

    try:
        with Image.open(file, formats=FORMATS) as image:
            # Pillow only warns of images up to twice its limit.
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise ImageError(f"{image.width:,} by {image.height:,} pixels are too many")
            # Decode a JPEG at a reduced size.
            image.draft("RGB", (size, size))
            small = image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGBA")
            small.thumbnail((size, size))
            return ImageOps.exif_transpose(small)
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:
        # Pillow's decoders raise many classes for damaged data.
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
