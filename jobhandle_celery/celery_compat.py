"""Private and version-dependent API of Celery, kombu and amqp, each use in one function.

`tests/test_celery_compat.py` has a contract test for each, which names what breaks when a release changes it.
"""

import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any

import amqp.serialization
import celery.app.task
from amqp import Channel
from amqp.exceptions import RecoverableConnectionError
from billiard.einfo import ExceptionInfo
from celery import Celery, Task, _state, canvas, result, states
from celery._state import get_current_task
from celery.app import trace
from celery.app.registry import TaskRegistry
from celery.concurrency.base import BasePool, apply_target
from celery.exceptions import Ignore
from celery.utils.imports import symbol_by_name
from celery.utils.serialization import get_pickleable_exception
from celery.worker.request import create_request_cls  # type: ignore[attr-defined]  # not in its stubs
from kombu.transport import virtual
from kombu.utils.json import dumps

_OWN_STRATEGY_MODULES = (Task.__module__, "jobhandle_celery.worker.instrumentation")

_PRODUCER_METHODS = ("publish", "_publish", "_prepare", "_delivery_details")
_REDIS_METHODS = ("prepare_message", "basic_publish", "_put", "_lookup", "encode_body", "typeof")
_AMQP_METHODS = ("prepare_message", "send_method")
"""Methods of kombu's producer and channels that a message passes. Only their origin is checked."""

_QOS_METHODS = ("append", "ack", "reject", "restore_unacked", "restore_unacked_once")
"""Methods of kombu's QoS that write notes of unacknowledged messages, and those that read them."""


def disconnect(connection: Any, *, handshake: bool = False) -> None:
    """Close a kombu connection: by a handshake with the broker, or just its sockets.

    amqp alone has a handshake; its transport has a `_collect` that just closes. Without one, kombu's
    `Connection.collect` would change Python's default socket timeout meanwhile, for all threads.

    Raises:
        OSError: the broker did not answer the handshake.
    """
    established = connection._connection
    if established is None:
        return  # never opened, or closed already
    if not hasattr(connection.transport, "_collect"):
        connection.release()
        return
    try:
        if handshake:
            # kombu's `release` would hide that the broker is silent, after it has asked twice.
            established.close()
    finally:
        connection.collect()


def supports_batches(producer: Any) -> bool:
    """Return True if a kombu producer can send several messages at once: from kombu 5.7 on, to Redis."""
    return bool(getattr(producer, "supports_batch_publish", False))


def batch(producer: Any, size: int) -> AbstractContextManager[Any]:
    """Return a context in which a kombu producer gathers messages, if it supports that."""
    return producer.batch(max_size=size) if supports_batches(producer) else nullcontext()


def share_redis_client(channel: Any, lend: Callable[..., AbstractContextManager[Any]]) -> Any:
    """Return a client of a kombu Redis channel, and have the channel borrow its clients from `lend`.

    kombu makes a client for each message, all on one pool of connections; that takes longer than to send one.

    Raises:
        AttributeError: this kombu's channel makes its clients otherwise. Nothing was changed.
    """
    client = channel._create_client()
    _ = channel.conn_or_acquire
    channel.conn_or_acquire = lend
    return client


def keep_redis_client(channel: Any) -> None:
    """Have a kombu Redis channel make one client for each of its pools of connections, not for each command.

    kombu makes a client to receive a message, and another one to acknowledge it. The channel of another
    broker stays as it is, and so does one that makes its clients otherwise.
    """
    if not type(channel).__module__.startswith("kombu.transport.redis"):
        return
    try:
        make, pool = channel._create_client, channel.pool
    except AttributeError:
        return
    client = make()

    def create_client(asynchronous: bool = False) -> Any:
        nonlocal pool, client
        if asynchronous:  # kombu keeps that one itself
            return make(asynchronous)
        if channel.pool is not pool:  # after an error of the connection
            pool, client = channel.pool, make()
        return client

    channel._create_client = create_client


def intercept_redis_qos(
    channel: Any,
    receive: Callable[[str, Any], bool],
    acknowledge: Callable[[str, Any], bool],
    flush: Callable[[], None],
) -> Callable[[Mapping[str, tuple[float, Any]], Collection[str]], None] | None:
    """Have a kombu Redis channel leave its notes of unacknowledged messages to the caller.

    kombu writes a note of each message that it receives to Redis, and removes it when the message is
    acknowledged. By these notes it puts messages back into their queues.

    Args:
        channel: The channel; that of another broker stays as it is, and so does one whose QoS is not kombu's.
        receive: Gets the delivery tag and the message; returns True if the caller writes the note.
        acknowledge: Gets the same; returns True if the caller removes the note.
        flush: Called before the channel reads its notes, and when it is closed.

    Returns:
        A function that writes the notes of messages, by their tags and with their times of receipt, and
        removes those of other tags; it raises ConnectionError once the connection is closed. None if the
        channel stays as it is.
    """
    if not type(channel).__module__.startswith("kombu.transport.redis"):
        return None
    qos = channel.qos
    methods: list[Any] = [getattr(qos, name, None) for name in _QOS_METHODS]
    if not all(_module_of(method).startswith("kombu.transport.") for method in methods):
        return None
    append, ack, *readers = methods

    def intercepted_append(message: Any, tag: str) -> None:
        if receive(tag, message):
            virtual.QoS.append(qos, message, tag)
        else:
            append(message, tag)

    def intercepted_ack(tag: str) -> None:
        if acknowledge(tag, qos._delivered.get(tag)):
            virtual.QoS.ack(qos, tag)
        else:
            ack(tag)

    def after_flush(method: Callable[..., None]) -> Callable[..., None]:
        def flushed(*args: Any, **options: Any) -> None:
            flush()
            method(*args, **options)

        return flushed

    def write(received: Mapping[str, tuple[float, Any]], acknowledged: Collection[str]) -> None:
        try:
            with qos.pipe_or_acquire() as pipe:
                if received:
                    pipe.zadd(qos.unacked_index_key, {tag: at for tag, (at, _) in received.items()})
                    notes = {tag: _note_of(message) for tag, (_, message) in received.items()}
                    pipe.hset(qos.unacked_key, mapping=notes)
                if acknowledged:
                    pipe.zrem(qos.unacked_index_key, *acknowledged)
                    pipe.hdel(qos.unacked_key, *acknowledged)
                pipe.execute()
        except Exception as error:
            if channel._closing or getattr(channel.connection, "client", None) is None:
                # kombu and redis fail anyhow then: None has no such attribute, a file is closed.
                raise ConnectionError(f"the connection was closed ({error})") from error
            raise

    qos.append, qos.ack = intercepted_append, intercepted_ack
    for reader in readers:
        setattr(qos, reader.__name__, after_flush(reader))
    return write


def _note_of(message: Any) -> str:
    """Return what kombu keeps of an unacknowledged message in Redis."""
    delivery = message.delivery_info
    note: str = dumps([message._raw, delivery["exchange"], delivery["routing_key"]])
    return note


def publishes_by_kombu(producer: Any) -> bool:
    """Return False if a method that a message passes is not of kombu or amqp, but patched by a tool."""
    channel = producer.channel
    methods = [getattr(producer, name, None) for name in _PRODUCER_METHODS]
    if isinstance(channel, Channel):
        methods += [getattr(channel, name, None) for name in _AMQP_METHODS]
        methods.append(Channel.basic_publish.__get__(channel))
    else:
        methods += [getattr(channel, name, None) for name in _REDIS_METHODS]
    return all(_module_of(method).startswith(("kombu.", "amqp.")) for method in methods)


def _module_of(method: Any) -> str:
    """Return the name of the module whose code a method is; empty if it is no plain method."""
    # By the function's globals: a wrapper copies its names. By `type`: wrapt's proxies of methods and of
    # functions pretend to be what they wrap, and forward its attributes.
    function = method.__func__ if type(method) is MethodType else None
    return str(function.__globals__.get("__name__")) if type(function) is FunctionType else ""


def open_confirm_channel(connection: Any, on_ack: Callable[..., None], on_nack: Callable[..., None]) -> Any:
    """Open a channel of an amqp connection in confirm mode, whose publishes do not wait for confirmations."""
    channel: Any = connection.channel()
    channel.confirm_select()
    # Instead of amqp's `basic_publish_confirm`.
    channel.basic_publish = partial(_publish_unconfirmed, channel)
    channel.events["basic_ack"].add(on_ack)
    channel.events["basic_nack"].add(on_nack)
    return channel


def _publish_unconfirmed(channel: Any, *args: Any, confirm_timeout: Any = None, **kwargs: Any) -> None:
    Channel.basic_publish(channel, *args, **kwargs)


def record_frames(channel: Any, publish: Callable[[], None]) -> bytes:
    """Return the frames that an amqp channel sends during a call; the broker gets none of them."""
    connection, frames = channel.connection, bytearray()
    writer = connection.frame_writer
    connection.frame_writer = connection.frame_writer_cls(connection, SimpleNamespace(write=frames.extend))
    try:
        publish()
    finally:
        connection.frame_writer = writer
    return bytes(frames)


def write_frames(channel: Any, frames: bytes) -> None:
    """Send frames that were encoded for an amqp channel.

    Raises:
        RecoverableConnectionError: the channel is closed.
    """
    if channel.connection is None:
        raise RecoverableConnectionError("connection already closed")
    channel.connection.transport.write(frames)


def max_payload(channel: Any) -> int:
    """Return how many bytes of a body amqp puts into one frame."""
    return int(channel.connection.frame_max) - 8


def encode_amqp(kind: str, value: Any) -> bytes:
    """Return a value as amqp encodes it: a table (F), an array (A) or a short text (s)."""
    encoded: bytes = amqp.serialization.dumps(kind, (value,))
    return encoded


def is_published_by_celery(app: Celery, task: Any) -> bool:
    """Return True if a task is published by Celery's own code, neither overridden nor patched."""
    return _module_of(plain_send_task(app)) == "celery.app.base" and (
        task is None or _module_of(task.apply_async) == "celery.app.task"
    )


def has_shadow_name(task: Any) -> bool:
    """Return True if a task's name in logs depends on its arguments, by a method of its own."""
    return getattr(task.shadow_name, "__func__", None) is not Task.shadow_name


def is_eager_publish(options: Mapping[str, Any]) -> bool:
    """Return True if options are those with which ``apply_async`` calls `apply` with `task_always_eager`.

    It passes all of these in each call; a caller of `apply` has no reason to.
    """
    return options.keys() >= {"task_id", "link", "link_error", "ignore_result"}


def wrap_send_task(app: Celery, wrap: Callable[[Celery], Callable[..., Any]]) -> None:
    """Set `send_task` of an app, which every ``apply_async`` calls, on the instance alone.

    The class stays as it is: tools patch it, before or later, and other apps share it.
    """
    own = wrap(app)
    own.__dict__[_PLAIN_SEND_TASK] = vars(app).get("send_task")
    app.send_task = own  # type: ignore[method-assign]  # that is what it does


def plain_send_task(app: Celery, wrapper: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Return an app's `send_task` without the wrapper of `wrap_send_task`, patched or overridden or not.

    The wrapper passes itself: what has replaced it in the app since may call it.
    """
    own: Any = wrapper or vars(app).get("send_task")
    own = getattr(own, _PLAIN_SEND_TASK, own)
    if own is None:
        for kind in type(app).__mro__:  # faster than a generator
            if "send_task" in vars(kind):
                # Without a look-up that binds it: a test may have patched in what is no function.
                own = vars(kind)["send_task"]
                own = own.__get__(app) if hasattr(type(own), "__get__") else own
                break
    plain: Callable[..., Any] = own
    return plain


_PLAIN_SEND_TASK = "jobhandle_plain"


def wrap_canvas(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Wrap, once for the process, the `apply_async` of Celery's chains, groups and chords.

    They belong to no app before they are applied, so that no app can have classes of its own.
    """
    for kind in (canvas._chain, canvas.group, canvas._chord):  # type: ignore[attr-defined]  # private
        if not hasattr(kind.apply_async, _WRAPPED):
            wrapped = wrap(kind.apply_async)
            setattr(wrapped, _WRAPPED, True)
            kind.apply_async = wrapped  # type: ignore[method-assign]  # that is what it does


def wrap_native_joins(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Wrap, once for the process, the `iter_native` of sets of results, which their `join_native` calls."""
    if not hasattr(result.ResultSet.iter_native, _WRAPPED):
        wrapped = wrap(result.ResultSet.iter_native)
        setattr(wrapped, _WRAPPED, True)
        result.ResultSet.iter_native = wrapped  # type: ignore[method-assign]  # that is what it does


_WRAPPED = "jobhandle_wrapped"


def task_sender(amqp: Any, layer: Callable[..., Any]) -> Callable[..., None]:
    """Return Celery's `send_task_message` without its event dispatcher, which would look at the broker's URL.

    Args:
        amqp: The app's `AMQP`.
        layer: Makes a view of an object with some attributes replaced.
    """
    sender: Callable[..., None] = type(amqp)._create_task_sender(layer(amqp, _event_dispatcher=None))
    return sender


def offline_connection() -> Any:
    """Return what `Celery.send_task` asks of a producer's connection, without a broker.

    The driver type is unknown to Celery, so that it adds no exchange for native delays.
    """
    transport = SimpleNamespace(driver_type="recorder")
    return SimpleNamespace(transport=transport, _reraise_as_library_errors=nullcontext)


def dump_pydantic_arguments(
    task: Any, args: list[Any], kwargs: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Return a task's arguments with pydantic models as dicts, as Celery does from 5.7 on."""
    dump = getattr(task, "_dump_pydantic_arguments", None)
    return (args, kwargs) if dump is None else dump(args, kwargs)


def custom_strategy(task: Any) -> str | None:
    """Return how a task receives its messages if not as Celery does by default; None if it does.

    A strategy decides what happens to a message: that of celery-batches collects messages and calls the task
    with all of them. Nothing then claims a job, so such a task cannot run as one.
    """
    if task.Strategy != Task.Strategy:
        own = getattr(task.Strategy, "__qualname__", task.Strategy)
        return f"the task {task.name} has a Strategy of its own ({own})"
    for place in (task, *type(task).__mro__):
        own = vars(place).get("start_strategy")
        if own is not None and getattr(own, "__module__", "") not in _OWN_STRATEGY_MODULES:
            return f"the task {task.name} has a start_strategy of its own"
    return None


def current_task() -> Any:
    """Return the task that runs in this context; None if there is none."""
    return get_current_task()


def registered_tasks(app: Celery) -> Any:
    """Return an app's registry of tasks; its public `tasks` would finalize the app."""
    return app._tasks  # type: ignore[attr-defined]  # private: not in its stubs


def registered_task(app: Celery, name: str) -> Any:
    """Return the task of a name in an app's registry; None if there is none.

    As Celery's `send_task`, by no more than a mapping has.
    """
    try:
        return registered_tasks(app)[name]
    except KeyError:
        return None


def on_register(app: Celery, call: Callable[[Any], None]) -> None:
    """Call a function with each task that is put into an app's registry from now on.

    The registry stays the same object of the same class: other code holds it and checks its class.
    """
    registry = registered_tasks(app)
    if not isinstance(registry, _ObservedRegistry):
        registry.__class__ = type("ObservedRegistry", (_ObservedRegistry, type(registry)), {})
    registry.on_register = call


class _ObservedRegistry(TaskRegistry):
    on_register: Callable[[Any], None]

    def __setitem__(self, name: str, task: Any, /) -> None:
        super().__setitem__(name, task)
        self.on_register(task)


def ignored_trace(task: Any, context: Any, error: Ignore, runtime: Any) -> Any:
    """Log and return what Celery's tracer does of a body that raises ``Ignore``, which is being handled."""
    info = trace.TraceInfo(states.IGNORED, error)
    returned = ExceptionInfo(internal=True)
    info.handle_ignore(task, context)
    return trace.trace_ok_t(returned, info, runtime, None)


def failed_trace(error: Exception) -> Any:
    """Return what Celery's tracer does of an internal error, which is being handled."""
    _, _, traceback = sys.exc_info()
    returned = ExceptionInfo((type(error), get_pickleable_exception(error), traceback), internal=True)
    return trace.trace_ok_t(returned, trace.TraceInfo(states.FAILURE, error), None, None)


def failed_task(task: Any, context: Any, error: Exception) -> Any:
    """Store, send and return what Celery's tracer does of a body that raises this error."""
    info = trace.TraceInfo(states.FAILURE, error)
    try:
        raise error
    except Exception:
        returned = info.handle_error_state(task, context, eager=bool(context.is_eager))
    return trace.trace_ok_t(returned, info, None, None)


def ignores_result(task: Any, request: Any) -> bool:
    """Return True if the result of a request is ignored, by the rule of the installed Celery."""
    # From 5.7 on the message's value takes precedence over the task's; 5.6 reads both.
    rule = getattr(celery.app.task, "get_actual_ignore_result", None)
    return bool(rule(task, request) if rule else task.ignore_result or request.ignore_result)


def ignored_time_limits(modules: Collection[str]) -> tuple[str, ...]:
    """Return which of ``"hard"`` and ``"soft"`` a pool ignores, by the modules of its classes."""
    if "celery.concurrency.gevent" in modules:
        return ("soft",)
    without = {f"celery.concurrency.{name}" for name in ("solo", "thread", "eventlet")}
    return () if without.isdisjoint(modules) else ("hard", "soft")


def can_terminate(pool: Any) -> bool:
    """Return True if a worker's pool can end the process, or greenlet, of one body."""
    # Looked up on the instance, on which the prefork pool sets the method when it starts.
    return getattr(pool.terminate_job, "__func__", None) is not BasePool.terminate_job


def wrap_request_reader(backend: Any, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Wrap, once, the method by which all of Celery's result backends read a request's arguments.

    The method is set on the instance: other code compares, inspects and pickles backends by their class. A
    backend without Celery's base class reads requests by code of its own, and is not changed.
    """
    read = getattr(backend, "_get_result_meta", None)
    if read is not None and "_get_result_meta" not in vars(backend):
        backend._get_result_meta = wrap(read)


def wrap_derived_request(cls: type, **wrappers: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Wrap methods of the class that Celery derives for each task from its `Request`.

    `celery.worker.request.create_request_cls` overrides these without a call of its base's.
    """
    if "execute_using_pool" in vars(cls):
        for name, wrap in wrappers.items():
            setattr(cls, name, wrap(getattr(cls, name)))


# For `jobhandle_celery.testing`.


def apps_of_process() -> list[Celery]:
    """Return the apps of this process, with those that the garbage collector has not collected yet."""
    return list(_state._get_active_apps())  # type: ignore[attr-defined]  # private: not in its stubs


@contextmanager
def without_servers(app: Celery, connect: Callable[..., Any], backend: Any) -> Iterator[None]:
    """Within the block, an app connects to its broker by `connect`, and stores results in `backend`.

    Afterwards it has the pools and the result backend that it had before. None leaves the result backend.
    """
    amqp: Any = app.amqp
    replaced: dict[str, Any] = {"_connection": connect, "_pool": None}
    if backend is not None:
        # A backend is kept for each thread, or one for all: for all threads of the block it is this one.
        replaced |= {"_backend_cache": backend, "_local": threading.local()}
    missing = object()
    former = {name: vars(app).get(name, missing) for name in replaced}
    producers, amqp._producer_pool = amqp._producer_pool, None
    vars(app).update(replaced)
    try:
        yield
    finally:
        amqp._producer_pool = producers
        for name, value in former.items():
            if value is missing:
                del vars(app)[name]
            else:
                vars(app)[name] = value


def request_run_here(task: Any, message: Any, hostname: str) -> tuple[Any, Any]:
    """Return the request of a message, of the class that a worker derives, and a pool to execute it with.

    The body runs in the thread that executes it. Unlike in the solo pool, what ends the process, as Ctrl-C
    does, ends it.
    """
    pool = BasePool(limit=1, app=task.app)
    pool.on_apply = partial(apply_target, propagate=(BaseException,))  # type: ignore[method-assign]
    traced = partial(trace.trace_task_ret, app=task.app)
    kind: Any = symbol_by_name(task.Request)
    derived = create_request_cls(kind, task, pool, hostname, None, trace=traced, app=task.app)
    return derived(message, app=task.app, hostname=hostname, task=task), pool
