"""A worker in this process, as Celery's own test kit starts one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import _state, signals
from celery.contrib.testing.worker import start_worker

SETTINGS: dict[str, Any] = {"jobhandle_sweep_interval": 0.2}


@contextmanager
def embedded_worker(app: Any, pool: str = "solo", **options: Any) -> Iterator[Any]:
    """Run a worker in a thread until the end of the block; the current app is then what it was before.

    Without logging of its own: the root logger would keep that level and handler for the tests that follow.
    Without the check by a ping, which needs a result backend.
    """
    state: Any = _state
    before = state.default_app, state._get_current_app()
    app.conf.update(SETTINGS)
    signals.setup_logging.connect(_no_logging)
    try:
        with start_worker(app, pool=pool, perform_ping_check=False, shutdown_timeout=60, **options) as worker:
            yield worker
    finally:
        signals.setup_logging.disconnect(_no_logging)
        state.default_app = before[0]
        state._set_current_app(before[1])


def _no_logging(**_: Any) -> None:
    """Celery sets up no logging if its signal has a receiver."""
