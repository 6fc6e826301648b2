"""Which files there are. Imports nothing of ours."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

STATE = ".jobhandle"
"""Folders of that name are this program's own, and are passed over wherever they are."""

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class File:
    """A regular file as it was seen. Names are as `os.fsdecode` gives them, so any bytes may be in them."""

    path: str
    """Absolute."""
    name: str
    """Below the folder."""
    size: int
    mtime_ns: int

    def key(self, kind: str) -> str:
        """Return what tells one job about this very state of the file from all others."""
        state = f"{self.path}\0{self.size}\0{self.mtime_ns}"
        return f"{kind}:{hashlib.sha256(os.fsencode(state)).hexdigest()}"

    @property
    def is_image(self) -> bool:
        """True if its name says so."""
        return self.name.lower().endswith(IMAGES)


@dataclass
class Scan:
    """What a walk has found, and what it could not look into."""

    files: list[File] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def scan(folder: Path, without: Path) -> Scan:
    """Find the regular files below a folder, in the order of their names; no symbolic link is followed.

    Args:
        folder: Where.
        without: A file that is passed over: the manifest itself.
    """
    found = Scan()
    for entry in _walk(str(folder), found.problems):
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError as error:
            found.problems.append(f"{shown(entry.path)}: {error.strerror}")
            continue
        name = os.path.relpath(entry.path, folder)
        if entry.path != str(without):
            found.files.append(File(entry.path, name, status.st_size, status.st_mtime_ns))
    found.files.sort(key=lambda file: os.fsencode(file.name))
    return found


def _walk(top: str, problems: list[str]) -> Iterator[os.DirEntry[str]]:
    folders = [top]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            problems.append(f"{shown(folder)}: {error.strerror}")
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name != STATE:
                    folders.append(entry.path)
            elif entry.is_file(follow_symlinks=False):
                yield entry


def shown(name: str) -> str:
    """Return a name as a terminal can bear it: control characters and what is not UTF-8 as escapes."""
    readable = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in readable)
