"""kombu's filesystem transport, changed for workers that poll the folder often.

kombu writes a message under its final name: a reader may find it empty, which ends the worker. And it lists
and sorts the folder for each message. Here a message is written under another name and renamed, and a listing
is used for all of its messages.
"""

import os
import time
import uuid
from collections import defaultdict, deque
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.transport import filesystem
from kombu.utils.json import dumps, loads

MAX_WAIT = 0.2
"""Seconds. Celery's worker asks for two."""


class Channel(filesystem.Channel):
    """Reads from and writes to one folder of messages."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._listed: defaultdict[str, deque[str]] = defaultdict(deque)

    def _put(self, queue: str, payload: Any, **_: Any) -> None:  # type: ignore[override]  # kombu's parameters
        folder = Path(self.data_folder_out)
        name = f"{time.time_ns():020}_{uuid.uuid4()}.{queue}.msg"
        unfinished = folder / f".{name}.unfinished"
        unfinished.write_text(dumps(payload))
        unfinished.rename(folder / name)

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        listed = self._listed[queue]
        if not listed:
            listed.extend(self._list(queue))
        while listed:
            payload = self._take(listed.popleft())
            if payload is not None:
                return loads(payload)
        raise Empty

    def _list(self, queue: str) -> list[str]:
        names = os.listdir(self.data_folder_in)
        return sorted(name for name in names if name.partition(".")[2] == f"{queue}.msg")

    def _take(self, name: str) -> str | None:
        """Take a message; None if another worker took it first: only one rename succeeds."""
        folder = Path(self.data_folder_in)
        taken = folder / f".{name}.taken"
        try:
            (folder / name).rename(taken)
        except FileNotFoundError:
            return None
        payload = taken.read_text()
        taken.unlink()
        return payload


class Transport(filesystem.Transport):
    """The transport of ``filesystem://`` in this app."""

    Channel = Channel

    def drain_events(self, connection: Any, timeout: Any = None, **_: Any) -> Any:
        """Wait for a message, at most `MAX_WAIT`: a worker checks for a shutdown between two waits."""
        return super().drain_events(connection, timeout and min(timeout, MAX_WAIT))
