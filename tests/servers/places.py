"""Folders of the servers' programs and data, and the users that run them."""

import contextlib
import importlib.util
import os
import pwd
import shutil
import socket
from pathlib import Path
from typing import Any

_SEARCHED = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
"""Folders of daemons, on root's PATH only; other users may start them too."""


def program(name: str) -> str | None:
    """Return the path of a program, or None."""
    return shutil.which(name, path=_SEARCHED)


def on_path(*programs: str) -> list[Path]:
    """Return the folder of the first of these programs, if all exist."""
    found = [program(name) for name in programs]
    return [Path(found[0]).resolve().parent] if found[0] and all(found) else []


def in_wheel(package: str, pattern: str) -> list[Path]:
    """Return the folders of programs in a package, which is not imported: that has side effects."""
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
    """Return a large tmpfs, where a database is created ten times faster; None without one."""
    with contextlib.suppress(OSError):
        if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 4 * 2**30:
            return "/dev/shm"
    return None


def session_of(user: str | None) -> dict[str, Any]:
    """Return Popen's options for a new session (Ctrl-C is for pytest alone), as `user` (None: this one)."""
    if user is None:
        return {"start_new_session": True, "cwd": "/"}
    group = pwd.getpwnam(user).pw_gid
    return {"start_new_session": True, "cwd": "/", "user": user, "group": group, "extra_groups": []}
