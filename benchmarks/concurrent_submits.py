"""Submits once in each of many threads or greenlets.

``python -m benchmarks.concurrent_submits threads|greenlets COUNT``
"""

import sys

if sys.argv[1] == "greenlets":
    from gevent import monkey

    monkey.patch_all()

import json
import os
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

import psutil

from .peers.celery_app import TASK, app_from_environment


def main(count: int) -> None:
    """Submit; print how many connections to the broker were opened, and how many are left open."""
    app: Any = app_from_environment()
    task, jobs = app.tasks[TASK], getattr(app, "jobs", None)
    port = urlsplit(app.conf.broker_url).port
    opened = _record_connects(port)
    failed: list[str] = []

    def request(number: int) -> None:
        try:
            if jobs is None:
                task.apply_async((number,))
            else:
                jobs.handle().submit(task.s(number))
        except Exception as error:
            failed.append(type(error).__name__)

    threads = [threading.Thread(target=request, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    connections = psutil.Process().net_connections("tcp")
    remote = [item.raddr for item in connections if item.raddr and item.status == "ESTABLISHED"]
    left = sum(address.port == port for address in remote)
    print(json.dumps({"opened": len(opened), "left": left, "failed": failed}), flush=True)
    os._exit(0)  # without waiting for what is left open


def _record_connects(port: int | None) -> list[object]:
    """Return a list that grows with each connection that this process opens to a port from now on."""
    opened: list[object] = []
    connect = socket.socket.connect

    def recording(client: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[1] == port:
            opened.append(address)
        connect(client, address)

    socket.socket.connect = recording  # type: ignore[assignment,method-assign]  # records connects
    return opened


if __name__ == "__main__":
    main(int(sys.argv[2]))
