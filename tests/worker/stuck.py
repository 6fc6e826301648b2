"""A worker whose housekeeping hangs, as with a broker that accepts a connection and never answers."""

import threading

import jobhandle_celery.worker.housekeeping
from tests.worker.bodies import app

__all__ = ["app"]


def _for_ever(*_: object) -> bool:
    threading.Event().wait()
    return False


setattr(jobhandle_celery.worker.housekeeping, "sweep", _for_ever)  # noqa: B010  # mypy has no word for it
