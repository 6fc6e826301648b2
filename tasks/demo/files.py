"""Finds the files of a folder."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

STATE = ".jobhandle"
"""The folder in which the demo keeps its state; folders of this name are skipped."""

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class File:
    """A regular file in one state. Names are decoded by `os.fsdecode`: they may hold any bytes."""

    path: str
    """Absolute."""
    name: str
    """Relative to the folder."""
    size: int
    mtime_ns: int

    def key(self, kind: str) -> str:
        """Return a unique key for a job of some kind on this state of the file."""
        state = f"{self.path}\0{self.size}\0{self.mtime_ns}"
        return f"{kind}:{hashlib.sha256(os.fsencode(state)).hexdigest()}"

    @property
    def is_image(self) -> bool:
        """True if the name has the suffix of an image."""
        return self.name.lower().endswith(IMAGES)


@dataclass
class Scan:
    """The files that were found, and errors of those that cannot be read."""

    files: list[File] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def scan(folder: Path, exclude: Path) -> Scan:
    """Find the regular files below a folder, sorted by name. Symbolic links are not followed.

    Args:
        folder: The top folder.
        exclude: A file to skip: the manifest itself.
    """
    result = Scan()
    for entry in _walk(str(folder), result.problems):
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError as error:
            result.problems.append(f"{printable(entry.path)}: {error.strerror}")
            continue
        name = os.path.relpath(entry.path, folder)
        if entry.path != str(exclude):
            result.files.append(File(entry.path, name, status.st_size, status.st_mtime_ns))
    result.files.sort(key=lambda file: os.fsencode(file.name))
    return result


def _walk(top: str, problems: list[str]) -> Iterator[os.DirEntry[str]]:
    folders = [top]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            problems.append(f"{printable(folder)}: {error.strerror}")
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name != STATE:
                    folders.append(entry.path)
            elif entry.is_file(follow_symlinks=False):
                yield entry


def printable(name: str) -> str:
    """Return a name with control characters and bytes that are not UTF-8 escaped."""
    readable = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in readable)
