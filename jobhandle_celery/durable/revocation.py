"""Makes `app.control.revoke` cancel jobs in their rows, besides the broadcast, which workers forget in time.

Services that store task ids, Flower and Celery's `AsyncResult` revoke tasks by it.
"""

import logging
from collections.abc import Iterable
from typing import Any

from celery import Celery
from celery.utils.imports import instantiate

from ..errors import JobHandleError
from ..runtime import runtime_of
from ..status import STARTABLE
from ..store import Selection

logger = logging.getLogger(__name__)


class _Revoking:
    """A mixin for the class of an app's `control`."""

    app: Celery

    def revoke(self, task_id: Any, destination: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Revoke tasks as Celery does, and cancel those of them that are jobs and have not started.

        The broadcast ends a running body, with `terminate` alone. A broadcast to chosen workers cancels no
        job.
        """
        replies = super().revoke(task_id, destination, *args, **kwargs)  # type: ignore[misc]  # a mixin
        if destination is None:
            _cancel(self.app, [task_id] if isinstance(task_id, str) else task_id)
        return replies


class _ControlMaker:
    """Replaces an app's `control_cls`, which Celery calls at the first use of `app.control`."""

    def __init__(self, plain: Any) -> None:
        self._plain = plain

    def __call__(self, app: Celery) -> Any:
        return _revoking(instantiate(self._plain, app=app))


def _revoking(control: Any) -> Any:
    kind = type(control)
    control.__class__ = type(kind.__name__, (_Revoking, kind), {"__module__": kind.__module__})
    return control


def install(app: Any) -> None:
    """Make the app's `control.revoke` cancel jobs, too."""
    app.control_cls = _ControlMaker(app.control_cls)
    if "control" in vars(app):
        _revoking(app.control)


def _cancel(app: Celery, task_ids: Iterable[str]) -> None:
    try:
        store = runtime_of(app).submitter.flushed_store()
        jobs, nodes = store.queries.ids_of_tasks(list(task_ids))
        for node_id in nodes:
            store.control.cancel(node_id, None, terminate=False)
        if jobs:
            store.control.cancel_selected(Selection(ids=tuple(jobs), statuses=tuple(STARTABLE)))
    except JobHandleError as error:
        # No error: the broadcast was sent, and a revoke of plain tasks must not need the database of jobs.
        logger.warning("a revoke was broadcast, but not every job was cancelled by it: %s", error)
