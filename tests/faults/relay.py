"""A server in front of another: each client gets a connection to the other, which a test can cut."""

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import sqlalchemy


class Relay:
    """Accepts connections at `url`, which is the server's URL through this relay; subclasses serve them."""

    def __init__(self, url: str) -> None:
        server = sqlalchemy.make_url(url)
        assert server.host is not None
        assert server.port is not None
        self.server = (server.host, server.port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        port = self._listener.getsockname()[1]
        self.url = server.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
        self.lock = threading.Lock()
        self.open: set[tuple[socket.socket, socket.socket]] = set()
        """The clients' sockets, each with that to the server."""
        self._threads: list[threading.Thread] = []
        self.start(self._accept)

    def serve(self, client: socket.socket) -> None:
        """Serve a client until its connection ends; in a thread of its own."""
        raise NotImplementedError

    def start(self, work: Callable[..., None], *given: socket.socket) -> threading.Thread:
        """Start a thread, which `close()` joins."""
        thread = threading.Thread(target=work, args=given, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def cut_all(self) -> int:
        """End every connection, as after a long network outage; return how many there were."""
        with self.lock:
            pairs = list(self.open)
        for pair in pairs:
            end(*pair)
        return len(pairs)

    def close(self) -> None:
        end(self._listener)  # a close alone does not wake a thread in accept()
        self._listener.close()
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
        with contextlib.suppress(OSError):
            while True:
                self.start(self.serve, self._listener.accept()[0])


def end(*sockets: socket.socket) -> None:
    for connection in sockets:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
