"""Commands against a silent RabbitMQ or Redis: the process ends and names the silent server."""

import contextlib
import socket

import pytest

from tests.cli.runner import Shell
from tests.faults.broker_gate import Gate

pytestmark = pytest.mark.faults

OPEN_OK = b"\x00\x0a\x00\x29"
"""AMQP class and method of the last frame of a handshake (connection.open-ok)."""


class SilentAfterHandshake(Gate):
    """A gate that shuts after a client's handshake with RabbitMQ."""

    def _carry(self, here: socket.socket, there: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := here.recv(65536):
                self._opened.wait()
                there.sendall(piece)
                if OPEN_OK in piece:
                    self._opened.clear()


@pytest.mark.parametrize(("command", "code"), [(["doctor"], 1), (["replay-events", "--since", "1h"], 5)])
def test_command_ends_before_a_silent_rabbitmq(
    command: list[str], code: int, rabbitmq_url: str, sqlite_url: str
) -> None:
    """The process exits too: no exit hook waits for the broker (fault 24)."""
    Shell(sqlite_url, "memory://").run("submit", "tests.add", "--args", "[1, 2]")  # something to replay
    with SilentAfterHandshake(rabbitmq_url) as gate:
        answer = Shell(sqlite_url, gate.url).run(*command, timeout=60)
        gate._opened.set()
    assert answer.code == code, answer
    assert "broker" in answer.out + answer.err
    assert "Traceback" not in answer.err


def test_doctor_ends_before_silent_database_and_broker(second_redis_url: str, postgresql_url: str) -> None:
    """Both are named (fault 24)."""
    with Gate(second_redis_url) as broker, Gate(postgresql_url) as database, broker.shut(), database.shut():
        answer = Shell(database.url, broker.url).run("doctor", timeout=60)
    assert answer.code == 1, answer
    assert "the broker does not answer" in answer.out
    assert "the database" in answer.out
