"""Connections to RabbitMQ are closed properly: it warns of each client that just disappears."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.faults

PROGRAM = """
import sys, threading
import amqp
from jobhandle_celery import Job
from tests.apps import make_app

closed = amqp.Connection.close
def close(connection, *args, **kwargs):
    closed(connection, *args, **kwargs)
    print("closed", flush=True)
amqp.Connection.close = close
app = make_app(sys.argv[1], sys.argv[2])
def submit():
    app.jobs.handle().submit(Job(task="tests.add", args=[1, 2]))
threads = [threading.Thread(target=submit) for _ in range(5)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("open", len(app.jobs._runtime.publisher._pool._idle), flush=True)
"""


def test_end_of_a_process_closes_its_connections(rabbitmq_url: str, sqlite_url: str) -> None:
    """RabbitMQ logs no "client unexpectedly closed TCP connection" (fault 21)."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, rabbitmq_url, sqlite_url],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    words = ran.stdout.split()
    assert words.count("closed") == int(words[words.index("open") + 1]) > 0, ran
