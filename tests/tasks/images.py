"""Valid and invalid images."""

import struct
import zlib
from pathlib import Path
from typing import Any


def image(path: Path, size: tuple[int, int] = (400, 200), mode: str = "RGB", **options: Any) -> Path:
    from PIL import Image

    Image.new(mode, size).save(path, **options)
    return path


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
