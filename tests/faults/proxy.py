"""A proxy in front of PostgreSQL that knows enough of its protocol to cut at a chosen request.

A client's request ends with a Query or a Sync, and the server's answer to it with ReadyForQuery. So the proxy
knows when a request is complete and when it has been executed, and can withhold the answer.
"""

import contextlib
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from tests.faults.relay import Relay, end

_NO_ENCRYPTION = {80877103, 80877104}
"""Requests of a client before its startup message: TLS, GSSAPI. The proxy declines both."""

_WANTS_PASSWORD = {3, 5, 7, 8, 10, 11}
"""The kinds of an Authentication message that the client has to answer."""


class Cut(Enum):
    """When a connection is cut, relative to one request."""

    BEFORE = "before the request arrives"
    DURING = "while the server works on it"
    AFTER = "between its commit and the answer"
    SILENT_BEFORE = "not at all: the request is swallowed"
    SILENT_AFTER = "not at all: the answer is swallowed"

    @property
    def silent(self) -> bool:
        """The connection stays open: TCP acknowledges bytes that no process reads."""
        return self in (Cut.SILENT_BEFORE, Cut.SILENT_AFTER)


class PostgresqlProxy(Relay):
    """Each connection has a thread."""

    def __init__(self, url: str) -> None:
        self.requests = 0
        """Requests since the last `watching()` began."""
        self.has_cut = False
        """Whether the fault asked for has happened."""
        self._fault: tuple[int, Cut] | None = None
        super().__init__(url)

    @contextmanager
    def watching(self, fault: tuple[int, Cut] | None = None) -> Iterator[None]:
        """Count requests from here on; cut the connection at `fault`: (request number from 1, when)."""
        with self.lock:
            self.requests, self.has_cut, self._fault = 0, False, fault
        try:
            yield
        finally:
            with self.lock:
                self._fault = None

    def serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, EOFError):
            server = socket.create_connection(self.server)
            # Small messages: with Nagle's algorithm two sockets in a row would wait for each other's ACK.
            for connection in (client, server):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = (client, server)
            with server:
                with self.lock:
                    self.open.add(pair)
                try:
                    self._greet(client, server)
                    while self._pass_on(client, server):
                        pass
                finally:
                    with self.lock:
                        self.open.discard(pair)
                    end(client, server)

    def _greet(self, client: socket.socket, server: socket.socket) -> None:
        while True:
            first = _startup(client)
            if struct.unpack("!I", first[4:8])[0] not in _NO_ENCRYPTION:
                break
            client.sendall(b"N")
        server.sendall(first)
        while not self._answer(client, server, until_asked=True):
            server.sendall(_message(client))

    def _answer(self, client: socket.socket, server: socket.socket, *, until_asked: bool = False) -> bool:
        """Forward the server's answer to the client; return False if the server asks for a password."""
        while True:
            message = _message(server)
            client.sendall(message)
            if message[:1] == b"Z":
                return True
            if (
                until_asked
                and message[:1] == b"R"
                and struct.unpack("!I", message[5:9])[0] in _WANTS_PASSWORD
            ):
                return False

    def _pass_on(self, client: socket.socket, server: socket.socket) -> bool:
        request = message = _message(client)
        while message[:1] not in (b"Q", b"S"):
            message = _message(client)
            request += message
        cut = self._due_cut()
        if cut is Cut.SILENT_BEFORE:
            _read_to_the_end(client)
        if cut in (Cut.BEFORE, Cut.SILENT_BEFORE):
            return False
        server.sendall(request)
        if cut is None:
            return self._answer(client, server)
        if cut is Cut.DURING:
            end(client)
        while _message(server)[:1] != b"Z":
            pass
        if cut is Cut.SILENT_AFTER:
            _read_to_the_end(client)
        return False

    def _due_cut(self) -> Cut | None:
        with self.lock:
            self.requests += 1
            number, cut = self._fault or (0, None)
            if number != self.requests:
                return None
            self.has_cut = True
            return cut


def _startup(client: socket.socket) -> bytes:
    length = _exactly(client, 4)
    return length + _exactly(client, struct.unpack("!I", length)[0] - 4)


def _message(sender: socket.socket) -> bytes:
    head = _exactly(sender, 5)
    return head + _exactly(sender, struct.unpack("!I", head[1:])[0] - 4)


def _exactly(sender: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        more = sender.recv(size - len(received))
        if not more:
            raise EOFError
        received += more
    return received


def _read_to_the_end(client: socket.socket) -> None:
    while client.recv(65536):
        pass
