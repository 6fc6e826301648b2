"""What Celery keeps of a task beside its row, where Celery does not do it itself. May import faults.

May be used in the process of a body and in a worker's main process.
"""

import logging
from collections.abc import Collection
from typing import Any

from celery import states
from celery.app import task as celery_task
from celery.exceptions import TaskRevokedError

from .. import internal_errors

logger = logging.getLogger(__name__)


def mark_revoked(task: Any, request: Any, reason: str) -> None:
    """Do what Celery does for a revoked task: chords end, the rest of a chain is REVOKED too."""
    ignored = ignores_result(task, request)
    try:
        task.backend.mark_as_failure(
            request.id,
            TaskRevokedError(reason),
            request=request,
            store_result=not request.is_eager and (not ignored or task.store_errors_even_if_ignored),
            state=states.REVOKED,
            call_errbacks=False,
        )
    except Exception as error:
        # A result backend that is away must not make a cancelled job run.
        internal_errors.log(
            "telling the result backend of a revoked task", error, f"the row of {request.id} says so"
        )


def ignores_result(task: Any, request: Any) -> bool:
    """Say whether the result of a request is ignored, by the rule of the installed Celery."""
    # From 5.7 on what the message says goes before the task's own; 5.6 looks at both.
    rule = getattr(celery_task, "get_actual_ignore_result", None)
    return bool(rule(task, request) if rule else task.ignore_result or request.ignore_result)


def limits_ignored(modules: Collection[str]) -> tuple[str, ...]:
    """Return which of a pool's time limits, ``"hard"`` and ``"soft"``, its classes' modules do not keep."""
    if "celery.concurrency.gevent" in modules:
        return ("soft",)
    without = {f"celery.concurrency.{name}" for name in ("solo", "thread", "eventlet")}
    return () if without.isdisjoint(modules) else ("hard", "soft")
