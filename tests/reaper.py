"""Ends the processes that a killed test run has left, from a process that outlives it.

Fixtures stop servers and workers, but a test run that is killed runs no fixtures. Each line on
standard input is a JSON list: `["watch", pid, signal]` is a leader of a process group and the
signal that ends it, `["forget", pid]` takes it back, `["folder", path]` is to be removed,
`["keep", path]` takes that back, `["notes", path]` is a folder with notes of further processes to end.
When the test run is gone, all watched processes are ended. Imports the standard library alone, so
that it starts in milliseconds.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path


class Reaper:
    """The test run's end of the pipe."""

    def __init__(self) -> None:
        processes = [os.getpid()]
        if "PYTEST_XDIST_WORKER" in os.environ:
            # The controller: if only it is killed, this process still finishes its current test.
            processes.append(os.getppid())
        command = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), *map(str, processes)]
        # A session of its own: Ctrl-C at the terminal is for pytest, which then runs its fixtures.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, cwd="/")

    def watch(self, pid: int, best_signal: int = signal.SIGKILL) -> None:
        self._send("watch", pid, int(best_signal))

    def forget(self, pid: int) -> None:
        self._send("forget", pid)

    def remove_folder(self, path: Path) -> None:
        self._send("folder", str(path))

    def keep_folder(self, path: Path) -> None:
        self._send("keep", str(path))

    def watch_notes(self, folder: Path) -> None:
        """At the end, end the processes named by the notes in a folder, and remove it.

        A note is a JSON file: an object with `pid`, `signal` and `folders`.
        """
        self._send("notes", str(folder))

    def close(self) -> None:
        """End the watched processes, remove the folders."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(timeout=20)

    def _send(self, *words: str | int) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the tests run without a reaper as well
            self._process.stdin.write(json.dumps(words).encode() + b"\n")
            self._process.stdin.flush()


def _signal_group(pid: int, which: int) -> bool:
    """Signal a process group; return False if it is gone."""
    try:
        os.killpg(pid, which)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _messages(test_run: int, controllers: list[int]) -> Iterator[object]:
    """Yield the messages of the test run, until it closes the pipe or is gone."""
    unread = b""
    while True:
        # A forked child of the test run also holds the pipe open: so check the parent too.
        alive = os.getppid() == test_run
        if alive and not all(_is_there(controller) for controller in controllers):
            os.kill(test_run, signal.SIGKILL)
        if select.select([0], [], [], 0.5 if alive else 0)[0]:
            read = os.read(0, 65536)
            if not read:
                return
            *lines, unread = (unread + read).split(b"\n")
            yield from map(json.loads, lines)
        elif not alive:
            return


def _main(test_run: int, controllers: list[int]) -> None:
    watched: dict[int, int] = {}
    folders: list[str] = []
    notes: list[str] = []
    for message in _messages(test_run, controllers):
        match message:
            case ["watch", int(pid), int(best_signal)]:
                watched[pid] = best_signal
            case ["forget", int(pid)]:
                watched.pop(pid, None)
            case ["folder", str(path)]:
                folders.append(path)
            case ["keep", str(path)]:
                folders.remove(path)
            case ["notes", str(path)]:
                notes.append(path)
    for path in notes:
        for note in Path(path).glob("*.json"):
            match json.loads(note.read_text()):
                case {"pid": int(pid), "signal": int(best_signal), "folders": [*theirs]}:
                    # Before all others, so that it is ended after them.
                    watched = {pid: best_signal, **watched}
                    folders += theirs
        folders.append(path)
    # Latest first: workers before their servers.
    for pid, best_signal in reversed(watched.items()):
        _signal_group(pid, best_signal)
        _signal_group(pid, signal.SIGCONT)  # a stopped process reacts to SIGKILL only
    deadline = time.monotonic() + 5
    while any(_signal_group(pid, 0) for pid in watched) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in watched:
        _signal_group(pid, signal.SIGKILL)
    for path in folders:
        shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]), [int(controller) for controller in sys.argv[2:]])
