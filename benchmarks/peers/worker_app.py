"""The app of a worker process: ``celery -A benchmarks.peers.worker_app worker``."""

import logging

from celery.signals import worker_ready

from .celery_app import READY, app_from_environment

app = app_from_environment()


@worker_ready.connect
def _log_ready(**_: object) -> None:
    logging.getLogger(__name__).warning(READY)
