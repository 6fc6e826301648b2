"""The servers that all processes of a test run share, one of each kind, started when the first needs it.

The processes share a folder that pytest's main process makes. A process that starts a server writes a note
there; from then on the reaper of the main process ends the server with the test run.
"""

import fcntl
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tests.reaper import Reaper
from tests.servers.server import Reached, Server, ServerMissing


class SharedServers:
    """One process's view of the servers of its test run."""

    def __init__(self, folder: Path, reaper: Reaper, *, main: bool) -> None:
        """Use the shared folder; `main` is the process that outlives the others."""
        self.folder = folder
        self._reaper = reaper
        self._main = main
        self._started: list[Server] = []

    def find(self, name: str, start: Callable[[Reaper], Server]) -> Reached:
        """Return the address of a server, started now unless another process has started it.

        Raises:
            ServerMissing: none could be started, here or by the process that tried first.
        """
        note = self.folder / f"{name}.json"
        with (self.folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not note.exists():
                self._start(note, start)
        found = json.loads(note.read_text())
        if "missing" in found:
            raise ServerMissing(found["missing"])
        return Reached(**found["reached"])

    def _start(self, note: Path, start: Callable[[Reaper], Server]) -> None:
        try:
            server = start(self._reaper)
        except ServerMissing as missing:
            note.write_text(json.dumps({"missing": str(missing)}))
            return
        left = {} if self._main else server.left_to_reaper
        unfinished = note.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({"reached": asdict(server.reached), **left}))
        unfinished.rename(note)
        if self._main:
            self._started.append(server)
        else:
            server.leave()

    def close(self) -> None:
        """End the servers that this process keeps."""
        for server in self._started:
            server.discard()
