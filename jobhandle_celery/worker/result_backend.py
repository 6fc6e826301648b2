"""What Celery's result backend stores of a job: that it is revoked, and its arguments without secrets.

With ``result_extended`` a backend stores the arguments of the request, of which a body, its hooks and its
retries need the values. So sensitive ones are hidden from the backend alone.
"""

import copy
from collections.abc import Callable
from typing import Any

from celery import states
from celery.app.task import Context
from celery.exceptions import TaskRevokedError

from .. import celery_compat, internal_errors
from ..broker.headers import headers_of, sensitive_of
from ..redaction import masked


def mark_revoked(task: Any, request: Any, reason: str) -> None:
    """Do Celery's bookkeeping of a revoked task: chords end, the rest of a chain is REVOKED too."""
    ignored = celery_compat.ignores_result(task, request)
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
        # An unavailable result backend must not make a cancelled job run.
        internal_errors.log(
            "marking a task as revoked in the result backend", error, f"the row of task {request.id} has it"
        )


def hide_sensitive(backend: Any) -> None:
    """Have a backend see ``***`` where an argument of a job is sensitive."""
    celery_compat.wrap_request_reader(backend, _hiding)


def _hiding(read: Callable[..., Any]) -> Callable[..., Any]:
    def reads(result: Any, state: Any, traceback: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        return read(result, state, traceback, _shown(request), *args, **kwargs)

    return reads


def _shown(request: Context | None) -> Context | None:
    hidden = sensitive_of(headers_of(request)) if request else ()
    if not hidden or request is None or request.args is None:
        return request  # a main process has none
    shown = copy.copy(request)
    shown.args, shown.kwargs = masked(request.args, request.kwargs or {}, hidden)
    return shown
