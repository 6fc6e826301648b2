"""kombu's filesystem transport, with two changes, for a worker that polls its folder fast.

kombu writes a message into a file that a reader may already see, and has then read it empty, which ends that
worker; and it lists and sorts the whole folder for each message that it takes out. Here a message appears
whole, by a rename, and a listing is used up before the next is made. Imports kombu alone.
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


class Channel(filesystem.Channel):
    """Reads and writes one folder of messages."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._listed: defaultdict[str, deque[str]] = defaultdict(deque)

    def _put(self, queue: str, payload: Any, **_: Any) -> None:  # type: ignore[override]  # named as kombu does
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
        """Take one message out; None if another worker was faster. The rename decides."""
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
    """What `filesystem://` stands for in this app."""

    Channel = Channel
