"""What makes every task of an app a job's task. May import task and below.

Tasks stay ordinary Celery tasks: `seal` puts `JobTask` outermost in the class of every task that is
registered with the app, now or later, however it was defined.
"""

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from celery import Celery, states
from celery.app.registry import TaskRegistry
from celery.app.trace import task_has_custom
from celery.canvas import Signature
from celery.utils.imports import symbol_by_name

from .discretion import discreet
from .errors import ApiUsageError
from .execution import Execution, ResultError, execution_of, ignores_result
from .header import job_headers
from .request import JobRequest, guarded_strategy
from .service import service_of
from .task import claim_once, endings, perform


def seal(app: Celery) -> None:
    """Make every task of the app claim, those registered already and those still to come."""
    registry: Any = app._tasks  # type: ignore[attr-defined]  # `tasks` would finalize the app
    if not isinstance(registry, _SealingRegistry):
        registry.__class__ = type("SealingRegistry", (_SealingRegistry, type(registry)), {})
    for task in list(registry.values()):
        seal_task(task)


class _SealingRegistry(TaskRegistry):
    def __setitem__(self, name: str, task: Any) -> None:
        super().__setitem__(name, task)
        seal_task(task)


def seal_task(task: Any) -> None:
    """Put `JobTask` outermost in the class of one task, above whatever its author has overridden."""
    plain = type(task)
    if issubclass(plain, JobTask):
        return
    request = symbol_by_name(plain.Request)
    own: dict[str, Any] = {
        "__module__": plain.__module__,
        "__doc__": plain.__doc__,
        "_plain": plain,
        "Request": type(request.__name__, (JobRequest, request), {"__module__": request.__module__}),
    }
    if task_has_custom(task, "__call__"):
        # Celery then calls the task itself, which may do its work without `run`.
        own["__call__"] = _call
    metaclass: Any = type(plain)
    task.__class__ = metaclass(plain.__name__, (JobTask, plain), own)
    task.__trace__ = None
    # Inside autoretry, which may wrap `run` before or after this: a stop is no error to be retried.
    inner = "_orig_run" if hasattr(task, "_orig_run") else "run"
    setattr(task, inner, _guarded(task, getattr(task, inner)))


def _guarded(task: Any, run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        return perform(task, run, args, kwargs)

    return guarded


def _call(task: Any, *args: Any, **kwargs: Any) -> Any:
    return perform(task, functools.partial(type(task)._plain.__call__, task), args, kwargs)


class JobTask:
    """Mixed into every task of the app; for a message that is no job's it changes nothing."""

    # Given by celery.app.task.Task, which this is mixed into.
    app: Celery
    request: Any
    _plain: type

    # A worker lost is the row's business, see JobRequest; STARTED is stored after a won claim, below.
    @property
    def track_started(self) -> bool:
        """False to Celery, which would store STARTED before the claim; `before_start` stores it."""
        return False

    @track_started.setter
    def track_started(self, value: bool) -> None:
        self.__dict__["_track_started"] = value

    @property
    def backend(self) -> Any:
        """Celery's result backend, which is shown no sensitive argument."""
        return discreet(super().backend)  # type: ignore[misc]  # a mixin

    @backend.setter
    def backend(self, value: Any) -> None:
        self._backend = value  # as Celery's own does

    @classmethod
    def bind(cls, app: Celery) -> Any:
        """Bind the plain class, so that `task_annotations` are written below this one, not above it."""
        return cls._plain.bind(app)  # type: ignore[attr-defined]  # a task class

    def start_strategy(self, app: Celery, consumer: Any, **kwargs: Any) -> Any:
        """Look at a job's message before Celery does."""
        strategy = super().start_strategy(app, consumer, **kwargs)  # type: ignore[misc]  # a mixin
        return guarded_strategy(strategy)

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Claim, then let the task's own hook have its turn."""
        execution = claim_once(self)
        _store_started(self)
        with nullcontext() if execution is None else endings(self, execution):
            super().before_start(task_id, args, kwargs)  # type: ignore[misc]  # a mixin

    def signature_from_request(self, request: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return a signature of the next attempt that is recorded where Celery would publish it."""
        signature = super().signature_from_request(request, *args, **kwargs)  # type: ignore[misc]  # a mixin
        execution = execution_of(self.request if request is None else request)
        if execution is None:
            return signature
        recorded = _RecordedSignature(signature, app=self.app)
        recorded._type = signature._type
        recorded.execution = execution
        headers = signature.options.get("headers") or {}
        recorded.options["headers"] = headers | job_headers(execution.run.job_id, execution.run.attempt + 1)
        return recorded

    subtask_from_request = signature_from_request

    def retry(self, *args: Any, **options: Any) -> Any:
        """Retry as Celery does; but a result that cannot be kept is not made better by another run."""
        error = options.get("exc", args[2] if len(args) > 2 else None)
        if isinstance(error, ResultError):
            raise error  # from autoretry_for=(Exception,)
        return super().retry(*args, **options)  # type: ignore[misc]  # a mixin

    def update_state(
        self, task_id: str | None = None, state: str | None = None, meta: Any = None, **kwargs: Any
    ) -> None:
        """Set the state of a task as Celery does, and note that of a running job."""
        super().update_state(task_id, state, meta, **kwargs)  # type: ignore[misc]  # a mixin
        execution = execution_of(self.request)
        if execution is not None and task_id in (None, execution.run.task_id):
            execution.state = str(state), meta

    def replace(self, sig: Any) -> Any:
        """Refuse, in a job: it is one task, and its row could not follow the replacement."""
        if execution_of(self.request) is not None:
            raise ApiUsageError("a task that runs as a job cannot replace itself; submit another job instead")
        return super().replace(sig)  # type: ignore[misc]  # a mixin


class _RecordedSignature(Signature[Any]):
    execution: Execution
    _type: Any

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        self.execution.retry = self

    def apply(self, *args: Any, **options: Any) -> Any:
        # Eagerly, the next attempt: whoever asked for the first one raises what the last one ends with.
        return super().apply(*args, **{**options, "throw": False})


def _store_started(task: Any) -> None:
    request = task.request
    wanted = task.__dict__.get("_track_started", task._plain.track_started)
    if wanted and not request.is_eager and not ignores_result(task, request):
        me = service_of(task.app).me()
        meta = {"pid": me.pid, "hostname": request.hostname}
        task.backend.store_result(request.id, meta, states.STARTED, request=request)
