"""Where the programs of servers are, where their data goes, and as whom they run."""

import contextlib
import importlib.util
import os
import pwd
import shutil
import socket
from pathlib import Path
from typing import Any

_SEARCHED = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
"""Daemons are where only root's PATH leads, and others may start them all the same."""


def program(name: str) -> str | None:
    """Where a program is, or None."""
    return shutil.which(name, path=_SEARCHED)


def on_path(*programs: str) -> list[Path]:
    """The folder of the first of these programs, if they are all there."""
    found = [program(name) for name in programs]
    return [Path(found[0]).resolve().parent] if found[0] and all(found) else []


def in_wheel(package: str, pattern: str) -> list[Path]:
    """The folders of programs in an installed package, which is not imported: that has side effects."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return []
    return sorted(Path(spec.submodule_search_locations[0]).glob(pattern))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def fast_folder() -> str | None:
    """A roomy tmpfs, where a database is created ten times faster, if there is one; None: the usual place."""
    with contextlib.suppress(OSError):
        if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 4 * 2**30:
            return "/dev/shm"
    return None


def session_of(user: str | None) -> dict[str, Any]:
    """Popen's options for a session of its own (Ctrl-C is for pytest alone), as that user (None: ours)."""
    if user is None:
        return {"start_new_session": True, "cwd": "/"}
    group = pwd.getpwnam(user).pw_gid
    return {"start_new_session": True, "cwd": "/", "user": user, "group": group, "extra_groups": []}
