"""What Celery's result backend stores of a job's arguments. May import header and sensitive.

With ``result_extended`` it stores those of the request, of which a body, its hooks and its retries need the
values. So they are hidden from the backend alone, at the one place where all backends read them.
"""

import copy
from collections.abc import Callable
from typing import Any

from celery.app.task import Context

from ..broker.headers import sensitive_of_context
from ..redaction import masked

_READS_REQUESTS = "_get_result_meta"  # of celery.backends.base.Backend


def discreet(backend: Any) -> None:
    """Have a backend see ``***`` where an argument of a job is sensitive.

    On the instance: others compare backends, look at their class, and pickle them by it. One that is not
    made of Celery's base class reads requests in its own way, and is left alone.
    """
    read = getattr(backend, _READS_REQUESTS, None)
    if read is not None and _READS_REQUESTS not in vars(backend):
        setattr(backend, _READS_REQUESTS, _discreetly(read))


def _discreetly(read: Callable[..., Any]) -> Callable[..., Any]:
    def reads(result: Any, state: Any, traceback: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        return read(result, state, traceback, shown(request), *args, **kwargs)

    return reads


def shown(request: Context | None) -> Context | None:
    """Return a task's request as it may be shown: its sensitive arguments are hidden."""
    hidden = sensitive_of_context(request) if request else ()
    if not hidden or request is None or request.args is None:
        return request  # a main process knows none
    shown = copy.copy(request)
    shown.args, shown.kwargs = masked(request.args, request.kwargs or {}, hidden)
    return shown
