"""The worker processes of the tests: what no test with a worker would show."""

import os
import socket
from collections.abc import Callable

import pytest

from tests.fork_server import _pair
from tests.workers import WorkerProcess


def test_worker_that_cannot_start_says_why(start_worker: Callable[..., WorkerProcess]) -> None:
    with pytest.raises(AssertionError, match="no_such_module"):
        start_worker("no_such_module:app")


def test_fork_server_sockets_block_despite_default_timeout() -> None:
    socket.setdefaulttimeout(5)  # as kombu does while it closes a connection
    try:
        mine, theirs = _pair()
    finally:
        socket.setdefaulttimeout(None)
    with mine, theirs:
        assert os.get_blocking(mine.fileno())
        assert os.get_blocking(theirs.fileno())
