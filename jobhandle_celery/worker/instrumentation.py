"""What makes every task of an app a job's task. May import task and below.

Tasks stay ordinary Celery tasks: `instrument_app` puts `JobTask` outermost in the class of every task that is
registered with the app, now or later, however it was defined. Celery traces a plain message by the tracer
that it has made itself, and calls nothing of ours; a job's message has a tracer of its own, behind the claim.
"""

from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import Celery, Task, states, uuid
from celery.app import trace
from celery.app.registry import TaskRegistry
from celery.app.task import Context
from celery.backends.base import DisabledBackend
from celery.canvas import Signature
from celery.contrib.abortable import AbortableTask
from celery.exceptions import Ignore
from celery.local import maybe_evaluate
from celery.result import EagerResult
from celery.utils.imports import symbol_by_name

from ..broker.headers import HEADER, job_headers, sensitive_of
from ..broker.retry_options import record_of
from ..errors import ApiUsageError, StopRequested
from ..runtime import runtime_of
from .execution import Execution, execution_of, report_of, running, settle_at_last
from .executor import WhileTraced, asked_to_stop, claim, guarded, hooked
from .message_guard import guarded_strategy
from .request import JobRequest
from .result_backend import discreet
from .signals import connect_runs


def instrument_app(app: Celery) -> None:
    """Make every task of the app claim, those registered already and those still to come."""
    registry: Any = app._tasks  # type: ignore[attr-defined]  # `tasks` would finalize the app
    if not isinstance(registry, _SealingRegistry):
        registry.__class__ = type("SealingRegistry", (_SealingRegistry, type(registry)), {})
    for task in list(registry.values()):
        instrument_task(task)


class _SealingRegistry(TaskRegistry):
    def __setitem__(self, name: str, task: Any, /) -> None:
        super().__setitem__(name, task)
        instrument_task(task)


def instrument_task(task: Any) -> None:
    """Put `JobTask` outermost in the class of one task, above whatever its author has overridden.

    A proxy, as ``@app.task`` returns, is evaluated. What is no task, such as a test's Mock, is left alone.
    """
    task = maybe_evaluate(task)
    plain = type(task)
    if not issubclass(plain, Task) or issubclass(plain, JobTask):
        return
    own: dict[str, Any] = {
        "__module__": plain.__module__,
        "__qualname__": plain.__qualname__,
        "__doc__": plain.__doc__,
        "__annotations__": getattr(task, "__annotations__", {}),
        "Request": _request_class(symbol_by_name(plain.Request)),
    }
    # Only where the class has its own: Celery calls neither where it has not.
    if plain.__call__ is not Task.__call__:
        own["__call__"] = WhileTraced(guarded)
    if plain.before_start is not Task.before_start:
        own["before_start"] = WhileTraced(hooked)
    if issubclass(plain, AbortableTask):
        own["is_aborted"] = _own_is_aborted(plain.is_aborted)
    tracer = task.__trace__
    metaclass: Any = type(plain)
    task.__class__ = metaclass(plain.__name__, (JobTask, plain), own)
    task.__trace__ = tracer


def _request_class(plain: type) -> type:
    known: type
    for known in plain.__subclasses__():  # a cache would keep the classes of an app that is gone
        if known.__bases__ == (JobRequest, plain):
            return known
    return type(plain.__name__, (JobRequest, plain), {"__module__": plain.__module__})


def _own_is_aborted(plain: Callable[..., Any]) -> Callable[..., Any]:
    def is_aborted(self: Any, **kwargs: Any) -> bool:
        current = execution_of(self.request)
        if current is None or kwargs.get("task_id", current.run.task_id) != current.run.task_id:
            return bool(plain(self, **kwargs))
        return asked_to_stop(self, current) or (
            not isinstance(self.backend, DisabledBackend) and bool(plain(self, **kwargs))
        )

    return is_aborted


class JobTask:
    """Mixed into every task of the app; for a message that is no job's it changes nothing."""

    @property
    def __trace__(self: Any) -> Any:
        """What a worker hands a message of this task to: Celery's tracer, or ours if it is a job's."""
        return self.__dict__.get("__trace__")

    @__trace__.setter
    def __trace__(self: Any, tracer: Any) -> None:
        self.__dict__["__trace__"] = None if tracer is None else _tracer(self, tracer)

    @__trace__.deleter
    def __trace__(self: Any) -> None:
        del self.__dict__["__trace__"]

    run = WhileTraced(guarded)

    @classmethod
    def bind(cls, app: Celery) -> Any:
        """Bind the plain class, so that `task_annotations` are written below this one, not above it."""
        return cls.__bases__[-1].bind(app)  # type: ignore[attr-defined]  # a task class

    def start_strategy(self, app: Celery, consumer: Any, **kwargs: Any) -> Any:
        """Look at a job's message before Celery does."""
        strategy = super().start_strategy(app, consumer, **kwargs)  # type: ignore[misc]  # a mixin
        return guarded_strategy(strategy, self, consumer)

    def apply(self: Any, args: Any = None, kwargs: Any = None, *rest: Any, **options: Any) -> Any:
        """Run the task here and now; if it is a job's, through the claim."""
        headers = options.get("headers")
        if not isinstance(headers, dict) or HEADER not in headers:
            return super().apply(args, kwargs, *rest, **options)  # type: ignore[misc]  # a mixin
        options["task_id"] = task_id = options.get("task_id") or uuid()
        request = {"id": task_id, "is_eager": True, "headers": headers}
        try:
            execution = _claim(self, args or (), kwargs or {}, request)
        except Ignore as refusal:
            return EagerResult(task_id, refusal, trace.IGNORED, name=self.name)
        connect_runs()
        with running(execution):
            result = super().apply(args, kwargs, *rest, **options)  # type: ignore[misc]  # a mixin
            settle_at_last(self, execution)
            return result

    def signature_from_request(self: Any, request: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return a signature of the next attempt that is recorded where Celery would publish it."""
        signature = super().signature_from_request(request, *args, **kwargs)  # type: ignore[misc]  # a mixin
        execution = execution_of(self.request if request is None else request)
        if execution is None:
            return signature
        recorded = _RecordedSignature(signature, app=self.app)
        recorded._type = signature._type
        recorded.execution = execution
        recorded.request = self.request if request is None else request
        headers = signature.options.get("headers") or {}
        recorded.options["headers"] = headers | job_headers(execution.run.job_id, execution.run.attempt + 1)
        return recorded

    subtask_from_request = signature_from_request

    def retry(self, *args: Any, **options: Any) -> Any:
        """Retry as Celery does; but a request to stop is no error that another run would mend."""
        error = options.get("exc", args[2] if len(args) > 2 else None)
        if isinstance(error, StopRequested):
            raise error  # from autoretry_for=(BaseException,)
        return super().retry(*args, **options)  # type: ignore[misc]  # a mixin

    def update_state(
        self: Any, task_id: str | None = None, state: str | None = None, meta: Any = None, **kwargs: Any
    ) -> None:
        """Set the state of a task as Celery does, and note that of a running job."""
        super().update_state(task_id, state, meta, **kwargs)  # type: ignore[misc]  # a mixin
        execution = execution_of(self.request)
        if execution is not None and task_id in (None, execution.run.task_id):
            execution.state = str(state), meta

    def replace(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Refuse, in a job: it is one task, and its row could not follow the replacement."""
        if execution_of(self.request) is not None:
            raise ApiUsageError("a task that runs as a job cannot replace itself; submit another job instead")
        return super().replace(*args, **kwargs)  # type: ignore[misc]  # a mixin


def _tracer(task: Any, plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return a tracer that claims a job's message before Celery traces it, and passes any other on."""
    of_jobs: Callable[..., Any] | None = None

    def trace_task(uuid: str, args: Any, kwargs: Any, request: Any = None) -> Any:
        nonlocal of_jobs
        if not request or HEADER not in request:
            return plain(uuid, args, kwargs, request)
        try:
            execution = _claim(task, args, kwargs, request)
        except Ignore as refusal:
            return _refused(task, request, refusal)
        with running(execution):
            if of_jobs is None:
                connect_runs()
                # Celery's tracer may keep the body that `run` is while it is made.
                host = request.get("hostname")
                of_jobs = trace.build_tracer(task.name, task, hostname=host, app=task.app)
            traced = of_jobs(uuid, args, kwargs, request)
            settle_at_last(task, execution)
        _let_go(traced.info)
        return traced._replace(runtime=report_of(execution, traced.runtime))

    return trace_task


def _claim(task: Any, args: Any, kwargs: Any, request: dict[str, Any]) -> Execution:
    """Claim before Celery says or stores anything of the task."""
    if sensitive_of(request) or sensitive_of(request.get("headers")):
        discreet(task.backend)
    task.request_stack.push(Context(request, args=args, kwargs=kwargs, called_directly=False))
    try:
        return claim(task)
    finally:
        task.pop_request()


def _refused(task: Any, request: dict[str, Any], refusal: Ignore) -> Any:
    """Log and return what Celery's tracer does of a body that raises ``Ignore``."""
    info = trace.TraceInfo(states.IGNORED, refusal)
    returned = ExceptionInfo(internal=True)
    info.handle_ignore(task, Context(request))
    _let_go(info)
    return trace.trace_ok_t(returned, info, getattr(refusal, "report", None), None)


def _let_go(info: Any) -> None:
    """Let go of the traceback of what a job ended with, now that everything is stored and said.

    It and Celery's frames hold each other, with some 100 KB that Python's collector does not see: a worker
    that refuses many duplicates would grow to twice its size.
    """
    if info is not None and isinstance(info.retval, BaseException):
        info.retval.__traceback__ = None


class _RecordedSignature(Signature[Any]):
    execution: Execution
    request: Any
    record: dict[str, Any] | None = None
    _type: Any

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        self.record = record_of(runtime_of(self.app).routing, self, self.request)
        self.execution.retry = self

    def apply(self, *args: Any, **options: Any) -> Any:
        # Eagerly, the next attempt: whoever asked for the first one raises what the last one ends with.
        return super().apply(*args, **{**options, "throw": False})
