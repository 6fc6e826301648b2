"""A gate before a server; while it is shut, no bytes pass, as when a network drops packets.

Connections stay open, new ones are accepted, and nothing arrives. What was sent meanwhile arrives when the
gate opens, as TCP retransmits it.
"""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults.relay import Relay, end

_PIECE = 65536


class Gate(Relay):
    """Each connection has two threads."""

    def __init__(self, url: str) -> None:
        self._opened = threading.Event()
        self._opened.set()
        self._silent: set[socket.socket] = set()
        super().__init__(url)

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Let no bytes through within the block."""
        self._opened.clear()
        try:
            yield
        finally:
            self._opened.set()

    def swallow(self) -> None:
        """From now on discard what open connections send; new connections work.

        TCP acknowledges the bytes, as before a server whose process is stopped.
        """
        with self.lock:
            self._silent.update(*self.open)

    def close(self) -> None:
        self._opened.set()
        super().close()

    def serve(self, client: socket.socket) -> None:
        self._opened.wait()
        with client, contextlib.suppress(OSError), socket.create_connection(self.server) as server:
            with self.lock:
                self.open.add((client, server))
            back = self.start(self._carry, server, client)
            self._carry(client, server)
            back.join()
            with self.lock:
                self.open.discard((client, server))

    def _carry(self, here: socket.socket, there: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := here.recv(_PIECE):
                self._opened.wait()
                if here not in self._silent:
                    there.sendall(piece)
        self._opened.wait()
        end(here, there)
