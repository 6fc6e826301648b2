"""A gate before a server; while it is shut, no bytes pass, as when a network drops packets.

Connections stay open, new ones are accepted, and nothing arrives. What was sent meanwhile arrives when the
gate opens, as TCP retransmits it.
"""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

_PIECE = 65536


class Gate:
    """Listens on loopback; `url` is the server's URL through this gate. Each connection has two threads."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._server = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        login = parts.netloc.rpartition("@")[0]
        port = self._listener.getsockname()[1]
        self.url = urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{port}"))
        self._opened = threading.Event()
        self._opened.set()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._silent: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

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
        with self._lock:
            self._silent |= self._sockets

    def cut_all(self) -> None:
        """End every connection, as after a long network outage."""
        with self._lock:
            sockets = list(self._sockets)
        _end(*sockets)

    def close(self) -> None:
        _end(self._listener)
        self._listener.close()
        self._opened.set()
        self.cut_all()
        for thread in self._threads:
            thread.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        self._opened.wait()
        with client, contextlib.suppress(OSError), socket.create_connection(self._server) as server:
            with self._lock:
                self._sockets |= {client, server}
            back = threading.Thread(target=self._carry, args=(server, client), daemon=True)
            back.start()
            self._carry(client, server)
            back.join()
            with self._lock:
                self._sockets -= {client, server}

    def _carry(self, here: socket.socket, there: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := here.recv(_PIECE):
                self._opened.wait()
                if here not in self._silent:
                    there.sendall(piece)
        self._opened.wait()
        _end(here, there)


def _end(*sockets: socket.socket) -> None:
    for connection in sockets:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
