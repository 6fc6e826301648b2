"""The app of this folder's workers, which records every signal that Celery sends of a task."""

import json
import os
from collections.abc import Callable
from typing import Any

from celery import signals

from tests.worker.bodies import app

__all__ = ["app"]

MAIN = os.getpid()
"""The worker's main process imports this; its children are forked."""

_PATH = os.environ.get("JOBHANDLE_TEST_RECORD", os.devnull)


def _write(signal: str, task_id: str) -> None:
    where = "main" if os.getpid() == MAIN else "child"
    descriptor = os.open(_PATH, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, (json.dumps([task_id, where, signal]) + "\n").encode())
    os.close(descriptor)


def _id(given: dict[str, Any]) -> str:
    request = given.get("request") or getattr(given["sender"], "request", None)
    if isinstance(request, dict):
        return str(request.get("id"))
    return str(given.get("task_id") or given.get("id") or getattr(request, "id", None))


def _recorder(name: str) -> Callable[..., None]:
    def record(**given: Any) -> None:
        if name.endswith("_publish"):
            _write(name, str(given["headers"]["id"]))
        elif name == "task_postrun":
            _write(f"{name} {given['state']}", str(given["task_id"]))
        else:
            _write(name, _id(given))

    return record


SIGNALS = [name for name in dir(signals) if name.startswith("task_") or name.endswith("_task_publish")]
for name in SIGNALS:
    if name != "task_sent":  # deprecated, and the same as after_task_publish
        getattr(signals, name).connect(_recorder(name), weak=False)
