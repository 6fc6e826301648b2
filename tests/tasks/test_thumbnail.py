"""`tasks.thumbnail` in this process."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.tasks.images import image, png_header


def thumbnail(path: object, *args: Any, **kwargs: Any) -> Any:
    from tasks.thumbnail import thumbnail

    return thumbnail(str(path), *args, **kwargs)


@pytest.mark.parametrize(
    ("name", "mode"), [("a.png", "P"), ("a.jpg", "CMYK"), ("a.gif", "RGB"), ("a.tif", "I;16")]
)
def test_thumbnail_fits_into_its_square(tmp_path: Path, name: str, mode: str) -> None:
    from PIL import Image

    target = tmp_path / "small.png"

    made = thumbnail(image(tmp_path / name, mode=mode), size=100, destination=str(target))

    assert made == {"path": str(target), "width": 100, "height": 50}
    with Image.open(target) as small:
        assert (small.format, small.size) == ("PNG", (100, 50))
    assert sorted(os.listdir(tmp_path)) == sorted([name, "small.png"])


def test_thumbnail_is_written_beside_its_image_by_default(tmp_path: Path) -> None:
    made = thumbnail(image(tmp_path / "a.png", (10, 20)))

    assert made == {"path": str(tmp_path / "a.png.thumbnail.png"), "width": 10, "height": 20}


def test_rotated_photograph_is_turned(tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    assert thumbnail(image(tmp_path / "a.jpg", exif=exif), 100)["height"] == 100


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image"),
        (b"words", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (png_header(100, 100), "truncated"),
        (png_header(10_000, 10_000), "too many"),
        (png_header(60_000, 60_000), "decompression bomb"),
    ],
    ids=["empty", "words", "postscript", "truncated", "large", "bomb"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_invalid_image_is_an_error(tmp_path: Path, content: bytes, reason: str) -> None:
    from tasks.thumbnail import ImageError

    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ImageError, match=rf"no thumbnail of '.*bad.png': .*{reason}"):
        thumbnail(tmp_path / "bad.png")
    assert os.listdir(tmp_path) == ["bad.png"]


def test_size_0_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 to 4096"):
        thumbnail(tmp_path / "a.png", size=0)
