"""Makes every task of an app claim its job before its body runs.

Tasks stay ordinary Celery tasks: `instrument_app` puts `JobTask` outermost in the class of every task that is
registered with the app, now or later, however it was defined. Celery traces a plain message with its own
tracer, and calls nothing of this library; a job's message has another tracer, which runs behind the claim.
"""

import functools
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from celery import Celery, Task, states, uuid
from celery.app import trace
from celery.app.task import Context
from celery.backends.base import DisabledBackend
from celery.canvas import Signature
from celery.contrib.abortable import AbortableTask
from celery.exceptions import Ignore, Reject
from celery.local import maybe_evaluate
from celery.result import EagerResult
from celery.utils.imports import symbol_by_name

from .. import celery_compat
from ..broker.headers import HEADER, job_headers, sensitive_of, show_headers
from ..broker.task_signatures import retry_record
from ..durable.publishing import in_scope_of_call, submit_eager
from ..errors import ApiUsageError, StopRequested
from ..runtime import runtime_of
from ..tracing import describe_run
from .claim import claim
from .current_run import CurrentRun, Unclaimed, current_run, running
from .executor import conclude, connect_signals, execute, own_code, run
from .message_guard import TaskRefused, guard_strategy
from .progress import keep_progress
from .request import request_class
from .result_backend import hide_sensitive

_starting = threading.RLock()
"""Two workers in threads of a process may start strategies of the same task."""


def instrument_app(app: Celery) -> None:
    """Make every task of the app claim: the tasks registered already, and later ones."""
    celery_compat.on_register(app, instrument_task)
    for task in list(celery_compat.registered_tasks(app).values()):
        instrument_task(task)


def instrument_task(task: Any) -> None:
    """Put `JobTask` outermost in the class of one task, above whatever its author has overridden.

    A proxy, as ``@app.task`` returns, is evaluated. Other objects, such as a test's Mock, are left alone.
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
        "Request": request_class(symbol_by_name(plain.Request)),
    }
    # Only if the class defines its own: otherwise Celery calls neither.
    if plain.__call__ is not Task.__call__:
        own["__call__"] = WrappedDuringJob(wrap_body)
    if plain.before_start is not Task.before_start:
        own["before_start"] = WrappedDuringJob(wrap_before_start)
    for name in ("delay_on_commit", "apply_async_on_commit"):  # of Celery's `DjangoTask`
        if hasattr(plain, name):
            own[name] = in_scope_of_call(getattr(plain, name))
    if issubclass(plain, AbortableTask):
        own["is_aborted"] = _own_is_aborted(plain.is_aborted)
    tracer = task.__trace__
    metaclass: Any = type(plain)
    task.__class__ = metaclass(plain.__name__, (JobTask, plain), own)
    task.__trace__ = tracer


def _asked_to_stop(task: Any, current: CurrentRun) -> bool:
    try:
        runtime_of(task.app).handle(run=current.run).raise_if_cancelled()
    except StopRequested:
        return True
    return False


def _own_is_aborted(plain: Callable[..., Any]) -> Callable[..., Any]:
    def is_aborted(self: Any, **kwargs: Any) -> bool:
        current = current_run(self.request)
        if current is None or kwargs.get("task_id", current.run.task_id) != current.run.task_id:
            return bool(plain(self, **kwargs))
        return _asked_to_stop(self, current) or (
            not isinstance(self.backend, DisabledBackend) and bool(plain(self, **kwargs))
        )

    return is_aborted


class WrappedDuringJob:
    """An attribute of a task that is wrapped while a job of it is traced, and else what the task's class has.

    Celery reads bodies and hooks from the task, so neither a plain message nor code that reads or patches the
    task meets the wrapper.
    """

    def __init__(self, wrap: Callable[[Any, Callable[..., Any]], Callable[..., Any]]) -> None:
        self._wrap = wrap

    def __set_name__(self, owner: type, name: str) -> None:
        self._owner, self._name = owner, name

    def __get__(self, task: Any, owner: Any = None) -> Any:
        if task is None:
            return self._of_class(owner)
        own = task.__dict__.get(self._name)
        plain = getattr(super(self._owner, task), self._name) if own is None else own
        return plain if running.get() is None else self._wrap(task, plain)

    def __set__(self, task: Any, value: Any) -> None:
        task.__dict__[self._name] = value

    def __delete__(self, task: Any) -> None:
        del task.__dict__[self._name]

    def _of_class(self, owner: Any) -> Any:
        # Tracers replace ``type(task).__call__`` by a wrapper of it.
        @functools.wraps(getattr(super(self._owner, owner), self._name))
        def of_class(task: Any, /, *args: Any, **kwargs: Any) -> Any:
            return self.__get__(task)(*args, **kwargs)

        return of_class


def wrap_body(task: Any, body: Callable[..., Any]) -> Callable[..., Any]:
    """Return a body that runs as its task's job while that is traced, and is just called otherwise."""

    @functools.wraps(body)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        current, running_here = current_run(task.request), running.get()
        if isinstance(running_here, Unclaimed) and running_here.task is task:
            raise TaskRefused(f"the task {task.name} has a Request of its own that runs its body")
        if current is None or current.entered:
            return body(*args, **kwargs)
        current.entered = True
        describe_run(current.run.job_id, current.run.attempt)
        if current.context.is_eager:
            show_headers(task.request)
        with own_code(task, current):
            returned = body(*args, **kwargs)
            current.keep(task, returned)
        return returned

    return guarded


def wrap_before_start(task: Any, hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a task's own `before_start`, wrapped: like the body, it may end the job."""

    def before_start(*args: Any) -> None:
        current = current_run(task.request)
        # Called by the body, it is a part of it.
        with nullcontext() if current is None or current.entered else own_code(task, current):
            hook(*args)

    return before_start


class JobTask:
    """Mixed into every task of the app; for a message that is no job's it changes nothing."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a tracer is Celery's, or for a job's message this library's.

        A property would be called for each message.
        """
        if name == "__trace__" and value is not None:
            value = _tracer(self, value)
        super().__setattr__(name, value)

    run = WrappedDuringJob(wrap_body)

    @classmethod
    def bind(cls, app: Celery) -> Any:
        """Bind the plain class, so that `task_annotations` are written below this one, not above it."""
        return cls.__bases__[-1].bind(app)  # type: ignore[attr-defined]  # a task class

    def start_strategy(self, app: Celery, consumer: Any, **kwargs: Any) -> Any:
        """Check a job's message before Celery reads it; requests of plain messages are no `JobRequest`."""
        start = functools.partial(super().start_strategy, app, consumer, **kwargs)  # type: ignore[misc]  # a mixin
        with _starting:
            strategy = start()
            if celery_compat.custom_strategy(self) is not None or "Request" in vars(self):
                return guard_strategy(strategy, self, consumer)
            # Celery's strategy reads this once.
            self.Request = type(self).__bases__[-1].Request  # type: ignore[attr-defined]  # a task class
            try:
                return guard_strategy(strategy, self, consumer, start())
            finally:
                del self.Request

    def apply(self: Any, args: Any = None, kwargs: Any = None, *rest: Any, **options: Any) -> Any:
        """Run the task eagerly; a job's task claims first."""
        headers = options.get("headers")
        if not isinstance(headers, dict) or HEADER not in headers:
            submitted = submit_eager(self, args, kwargs, options)
            if submitted is not None:
                return submitted
            return super().apply(args, kwargs, *rest, **options)  # type: ignore[misc]  # a mixin
        options["task_id"] = task_id = options.get("task_id") or uuid()
        ignore_result = options.get("ignore_result", self.ignore_result)
        request = {"id": task_id, "is_eager": True, "headers": headers, "ignore_result": ignore_result}
        context: Any = _context(self, request, args or (), kwargs or {})
        try:
            current = claim(self, context)
        except Ignore as refusal:
            return EagerResult(task_id, refusal, trace.IGNORED, name=self.name)
        connect_signals()
        with run(self, current):
            if current.unstartable is not None:
                return EagerResult(task_id, current.unstartable, states.FAILURE, name=self.name)
            options["headers"] = context.headers
            return super().apply(context.args, kwargs, *rest, **options)  # type: ignore[misc]  # a mixin

    def signature_from_request(self: Any, request: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return a signature of the next attempt that is recorded where Celery would publish it."""
        signature = super().signature_from_request(request, *args, **kwargs)  # type: ignore[misc]  # a mixin
        current = current_run(self.request if request is None else request)
        if current is None:
            return signature
        recorded = _RecordedSignature(signature, app=self.app)
        recorded._type = signature._type
        recorded.current = current
        recorded.request = self.request if request is None else request
        headers = signature.options.get("headers") or {}
        recorded.options["headers"] = headers | job_headers(current.run.job_id, current.run.attempt + 1)
        return recorded

    subtask_from_request = signature_from_request

    def retry(self, *args: Any, **options: Any) -> Any:
        """Retry as Celery does, except after a stop request, which is not an error to retry.

        Raises:
            ApiUsageError: the job cannot keep an option. Celery's own error would hide that.
        """
        error = options.get("exc", args[2] if len(args) > 2 else None)
        if isinstance(error, StopRequested):
            raise error  # from autoretry_for=(BaseException,)
        try:
            return super().retry(*args, **options)  # type: ignore[misc]  # a mixin
        except Reject as rejection:
            reason: Any = getattr(rejection, "reason", None)  # not in its stubs
            if isinstance(reason, ApiUsageError):
                raise reason from None
            raise

    def update_state(
        self: Any, task_id: str | None = None, state: str | None = None, meta: Any = None, **kwargs: Any
    ) -> None:
        """Set the state of a task as Celery does; note that of a running job, and keep its progress."""
        super().update_state(task_id, state, meta, **kwargs)  # type: ignore[misc]  # a mixin
        current = current_run(self.request)
        if current is not None and task_id in (None, current.run.task_id):
            current.state = str(state), meta
            keep_progress(runtime_of(self.app).handle(run=current.run), state, meta)

    def replace(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Refuse, in a job: it is one task, and its row could not follow the replacement."""
        if current_run(self.request) is not None:
            raise ApiUsageError(
                "replace: a task that runs as a job cannot replace itself, for its row, and what needs it, "
                "cannot follow; submit another job, or make the replacement the next task of a chain"
            )
        return super().replace(*args, **kwargs)  # type: ignore[misc]  # a mixin

    def add_to_chord(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Refuse, in a job: what the body of its chord needs is in the database since the submit."""
        if current_run(self.request) is not None:
            raise ApiUsageError(
                "add_to_chord: the members of a chord that runs as a job are those of its submit; submit "
                "another job, or put all tasks into the header of the chord"
            )
        return super().add_to_chord(*args, **kwargs)  # type: ignore[misc]  # a mixin


def _tracer(task: Any, plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return a tracer that executes a job's message, and passes any other on to Celery's."""
    of_jobs: Callable[..., Any] | None = None

    def trace_task(uuid: str, args: Any, kwargs: Any, request: Any = None) -> Any:
        if not request or HEADER not in request:
            return plain(uuid, args, kwargs, request)

        def traced() -> Any:
            nonlocal of_jobs
            if of_jobs is None:
                connect_signals()
                # Celery's tracer may keep the `run` that the task has when the tracer is made.
                host = request.get("hostname")
                of_jobs = trace.build_tracer(task.name, task, hostname=host, app=task.app)
            if context.args is args:
                return of_jobs(uuid, args, kwargs, request)
            # The results of what the job needs are there.
            return of_jobs(uuid, context.args, kwargs, {**request, HEADER: getattr(context, HEADER)})

        context: Any = _context(task, request, args, kwargs)
        return execute(task, context, traced)

    return trace_task


def _context(task: Any, request: dict[str, Any], args: Any, kwargs: Any) -> Context:
    if sensitive_of(request) or sensitive_of(request.get("headers")):
        hide_sensitive(task.backend)
    return Context(request, args=args, kwargs=kwargs, called_directly=False)


class _RecordedSignature(Signature[Any]):
    current: CurrentRun
    request: Any
    record: dict[str, Any] | None = None
    _type: Any

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        self.record = retry_record(runtime_of(self.app).routing, self, self.request)
        self.current.retry = self

    def apply(self, *args: Any, **options: Any) -> Any:
        # Celery's eager tracer has returned, and the body has ended: the row is written before the next
        # attempt, whose error the caller of the first one raises.
        conclude(self.type, self.current)
        return super().apply(*args, **{**options, "throw": False})
