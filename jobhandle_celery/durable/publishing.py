"""Submits a job where Celery would publish a durable task.

`Task.delay`, `Task.apply_async`, `Signature.apply_async` and beat all call the app's `send_task`, which is
wrapped, for this app alone. The wrapper submits a job for a call of a durable task, and passes every other
call on unchanged. A task's own ``apply_async``, or a patched one, has run by then, as for a plain task.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial, wraps
from typing import Any

from celery import Celery

from .. import celery_compat, validation
from ..broker.sent_tasks import SentCall
from ..broker.signatures import GROUP
from ..broker.task_signatures import MAPS
from ..errors import ConfigurationError, shown
from ..runtime import runtime_of
from . import revocation
from .canvas import applied, is_in_flight, task_names, task_of_call, wrap_apply_async
from .results import JobGroupResult, JobResult, wrap_iter_native
from .scope import ScopeVariable

_BUILT_IN = "celery."
_ATTRIBUTE = "_jobhandle_durable"


class DurableTasks:
    """Decides which tasks of an app are durable, and submits their calls."""

    def __init__(self, app: Celery) -> None:
        self._app: Any = app
        self.scope = ScopeVariable()
        self._patterns: tuple[str, ...] | bool | None = None
        self._answers: dict[str, bool] = {}
        self.plain: set[str] = set()
        """Names of tasks of which no call is durable; each is registered."""

    def forget(self) -> None:
        """Read ``jobhandle_durable`` again at the next call."""
        self._patterns = None
        self._answers.clear()
        self.plain.clear()

    def registered(self, name: str) -> Any:
        """Return the task of a name; None if this app has none.

        Unlike Celery's `send_task`, it first registers lazy tasks that were not used yet: they may be
        durable.
        """
        task = celery_compat.registered_task(self._app, name)
        if task is None and not self._app.finalized and self._app.autofinalize:
            self._app.finalize(auto=True)
            task = celery_compat.registered_task(self._app, name)
        return task

    def include(self, name: str, task: Any) -> bool:
        """Return True if a task is durable; `task` is None if it is not registered here."""
        answer = self._answers.get(name)
        if answer is None:
            answer = self._decide(name, task)
            if task is not None:
                self._answers[name] = answer
                if not answer and name not in MAPS:
                    self.plain.add(name)
        return answer

    def include_call(self, name: Any, task: Any, kwargs: Any) -> bool:
        """Return True if a call runs a durable task; `task` is None if it is called by its name."""
        runs = task_of_call(name, kwargs)
        if runs != name or task is None:
            task = self.registered(runs)
        return self.include(runs, task)

    def _decide(self, name: str, task: Any) -> bool:
        if not isinstance(name, str) or name.startswith(_BUILT_IN):
            return False
        own: Any = getattr(task, "durable", None)
        if own is not None:
            return bool(own)
        if self._patterns is None:
            self._patterns = _patterns(self._app.conf.get("jobhandle_durable"))
        if isinstance(self._patterns, bool):
            return self._patterns if task is not None else False
        return any(fnmatchcase(name, pattern) for pattern in self._patterns)

    def _have_any(self) -> bool:
        """Return True if a task may be durable.

        If none is, no canvas is looked through: Celery publishes a generator of tasks while it reads it.
        """
        if self._patterns is None:
            self._patterns = _patterns(self._app.conf.get("jobhandle_durable"))
        if self._patterns:
            return True
        self.registered("")
        tasks = list(celery_compat.registered_tasks(self._app).values())
        return any(getattr(task, "durable", None) for task in tasks)

    def submit_canvas(self, canvas: Any, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
        """Submit a canvas as a tree of jobs; None if no task of it is durable.

        Raises:
            ApiUsageError, DatabaseUnavailableError: as `JobHandle.submit`.
        """
        durable = self._have_any() and any(
            self.include(name, self.registered(name)) for name in task_names(canvas, kwargs)
        )
        if not durable or is_in_flight(canvas.options | options):
            return None
        scope, own = self.scope.current, dict(canvas.options)
        task_id = validation.task_id(options.get("task_id") or own.pop("task_id", None))
        signature = applied({**canvas, "options": own}, args, kwargs, {**options, "task_id": None})
        submitter = runtime_of(self._app).submitter
        root, *members = submitter.submit_canvas(
            signature, scope.username, scope.groupname, scope.session, task_id
        )
        result: Any
        if root.kind == GROUP:
            results = [JobResult(member.task_id, app=self._app, job_id=member.job_id) for member in members]
            result = JobGroupResult(root.task_id, results, app=self._app, job_id=root.job_id)
        else:
            result = JobResult(root.task_id, app=self._app, job_id=root.job_id)
        self._add_to_parent(result, options)
        return result

    def submit_eager(self, task: Any, args: Any, kwargs: Any, options: dict[str, Any]) -> JobResult | None:
        """Submit a call of `apply_async` that Celery makes a call of `apply`, due to `task_always_eager`.

        Return None for any other call of `apply`, and for a task that is not durable.
        """
        if not (celery_compat.is_eager_publish(options) and self._app.conf.task_always_eager):
            return None
        durable = self.include_call(task.name, task, kwargs)
        return self.submit(task.name, args, kwargs, options, task) if durable else None

    def submit(self, name: str, args: Any, kwargs: Any, options: dict[str, Any], task: Any) -> JobResult:
        """Submit one call of `send_task` as a job, for the user and in the session of `Jobs.submitting`.

        Raises:
            ApiUsageError, DatabaseUnavailableError: as `JobHandle.submit`.
        """
        scope = self.scope.current
        submitter = runtime_of(self._app).submitter
        task_id, job_id = submitter.submit_sent(
            SentCall(name, args, kwargs, options, task), scope.username, scope.groupname, scope.session
        )
        result = JobResult(task_id, app=self._app, job_id=job_id)
        result.ignored = bool(options.get("ignore_result"))
        self._add_to_parent(result, options)
        return result

    def _add_to_parent(self, result: Any, options: dict[str, Any]) -> None:
        parent = self._app.current_worker_task
        if parent and options.get("add_to_parent", True):
            parent.add_trail(result)


def _patterns(value: Any) -> tuple[str, ...] | bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, (list, tuple, set, frozenset)) and all(isinstance(item, str) for item in value):
        return tuple(value)
    accepted = "True, False, or a list of patterns of task names"
    raise ConfigurationError(f"jobhandle_durable: {shown(value)}; accepted: {accepted}")


def durable_tasks(app: Celery) -> DurableTasks:
    """Return the durable tasks of an app that has `Jobs`."""
    durable: DurableTasks = getattr(app, _ATTRIBUTE)
    return durable


def submit_eager(task: Any, args: Any, kwargs: Any, options: dict[str, Any]) -> JobResult | None:
    """As `DurableTasks.submit_eager`; None also if the app has no `Jobs`: a task may belong to two apps."""
    durable: DurableTasks | None = getattr(task.app, _ATTRIBUTE, None)
    return None if durable is None else durable.submit_eager(task, args, kwargs, options)


def in_scope_of_call(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of a task that calls the task later, for whom it is called now.

    Celery's `DjangoTask` has two, which call it after a commit: the block of `Jobs.submitting` may have
    ended by then. The session is that of the later moment: that of an ended block may never be committed
    again.
    """

    @wraps(method)
    def in_scope(self: Any, *args: Any, **kwargs: Any) -> Any:
        durable: DurableTasks | None = getattr(self.app, _ATTRIBUTE, None)
        if durable is None:
            return method(self, *args, **kwargs)
        variable, of_call = durable.scope, durable.scope.current

        def scoped(call: Callable[..., Any]) -> Callable[..., Any]:
            def later(*args: Any, **kwargs: Any) -> Any:
                with variable.entered(replace(of_call, session=variable.current.session)):
                    return call(*args, **kwargs)

            return later

        # Of the same class, for its `super()`; `copy.copy` would return the registered task.
        task = object.__new__(type(self))
        own = {name: scoped(getattr(self, name)) for name in ("delay", "apply_async")}
        task.__dict__ = {**vars(self), **own}
        return method(task, *args, **kwargs)

    return in_scope


def install(app: Celery) -> DurableTasks:
    """Wrap the app's `send_task` and `control.revoke`, and Celery's canvases, for durable tasks."""
    durable = DurableTasks(app)
    setattr(app, _ATTRIBUTE, durable)
    celery_compat.wrap_send_task(app, durable_sender)
    revocation.install(app)
    celery_compat.wrap_canvas(partial(wrap_apply_async, submit=_submit_canvas))
    celery_compat.wrap_native_joins(wrap_iter_native)
    return durable


def _submit_canvas(canvas: Any, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
    durable: DurableTasks | None = getattr(canvas.app, _ATTRIBUTE, None)
    return None if durable is None else durable.submit_canvas(canvas, args, kwargs, options)


def durable_sender(app: Celery) -> Callable[..., Any]:
    """Return the function that replaces an app's `send_task`."""
    durable = durable_tasks(app)
    positions = [*inspect.signature(type(app).send_task).parameters][1:]

    @wraps(type(app).send_task)
    def send_task(*given: Any, **options: Any) -> Any:
        name: Any = given[0] if given else options.get("name")
        kwargs: Any = given[2] if len(given) > 2 else options.get("kwargs")
        called_by = options.get("task_type")
        if (
            name in durable.plain
            or not durable.include_call(name, called_by, kwargs)
            or is_in_flight(options)
        ):
            return celery_compat.plain_send_task(app, send_task)(*given, **options)
        call = dict(zip(positions, given, strict=False)) | options
        return durable.submit(
            call.pop("name"), call.pop("args", None), call.pop("kwargs", None), call, called_by
        )

    return send_task
