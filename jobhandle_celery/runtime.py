"""The components of one app's jobs, created on first use.

There is one `Runtime` per app: settings, store, publisher, submitter, and, in a worker, its identity.
Tasks, requests and the worker's step find it by their app.
"""

import os
import queue
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from celery import Celery
from celery.result import assert_will_not_block  # type: ignore[attr-defined]  # not in its stubs

from . import migrations, settings
from .broker.publisher import Publisher
from .broker.routing import Routing
from .completion import CompletionPoller
from .errors import ConfigurationError, DatabaseUnavailableError
from .handle import JobHandle
from .settler import Settler
from .store import Database, MessageKey, Run, Store, Worker
from .submitter import Submitter

if TYPE_CHECKING:
    from .worker.claimer import Claimer
    from .worker.finisher import Finisher

T = TypeVar("T")


@dataclass(frozen=True)
class DeferredWrite:
    """A write of a worker's main process, made outside of its event loop: about a child, once the child is
    gone, or about a message that was not run.
    """

    job_id: int
    task_id: str
    write: Callable[[], object]
    """Writes it. A list of `ChangedJob` that it returns, or a `JobRecord`, is sent as events."""
    pid: int | None = None
    """The process that must be gone first; None: none."""
    since: float = field(default_factory=time.monotonic)
    refused: Callable[[DatabaseUnavailableError], None] | None = None
    """Called when it was not written though the database answers; raises if it never can be."""


@dataclass(frozen=True)
class RedeliveredMessage:
    """A message that was sent before and not claimed: it may have ended the worker that received it."""

    key: MessageKey
    """Job id, task id and attempt."""
    accept: Callable[[], None]
    """Accepts it, in the consumer's own thread."""
    drop: Callable[[], None]
    """Rejects it, in the consumer's own thread."""
    since: float = field(default_factory=time.monotonic)


MAX_CUT_OFF = 10_000

_ATTRIBUTE = "_jobhandle_runtime"
"""On the app: no global registry keeps apps alive."""


class Runtime:
    """Lazily made parts; settings may change until the first of them is used."""

    def __init__(self, app: Celery, make_database: Callable[[settings.Settings], Database]) -> None:
        self._app = app
        self._make_database = make_database
        self.worker: Worker | None = None
        """Set in a worker's main process before its pool forks; None in any other process."""
        self.finisher: Finisher | None = None
        """Of a worker that runs several bodies at a time; set before its pool forks."""
        self.claimer: Claimer | None = None
        """Of a worker whose bodies run in threads or greenlets of its own process."""
        self.prefork = False
        """True if the worker's bodies run in child processes."""
        self.warned_of_limits = False
        """This worker has logged that its pool keeps no time limits."""
        self.redelivered: queue.SimpleQueue[RedeliveredMessage] = queue.SimpleQueue()
        """Messages that housekeeping notes in their rows before they are accepted."""
        self.deferred_writes: queue.SimpleQueue[DeferredWrite] = queue.SimpleQueue()
        """Writes that would block the main process's event loop; housekeeping makes them."""
        self.cut_off: deque[MessageKey] = deque(maxlen=MAX_CUT_OFF)
        """Job id, task id and attempt of bodies that were cut off; no event of their end has been sent."""
        self.started_nodes: set[int] = set()
        """Nodes that this process has noted as Running, see `worker.tree_member`."""
        self.result_backend: Any = None
        """The `JobBackend` of results, made at the first use, see `durable.backend`."""
        self.install()

    def install(self) -> None:
        """Make this the runtime of its app, instead of an earlier one."""
        setattr(self._app, _ATTRIBUTE, self)

    @cached_property
    def settings(self) -> settings.Settings:
        """The settings as they were at first use."""
        return settings.read(self._app.conf.get)

    @cached_property
    def store(self) -> Store:
        """The store, whose connections are this process's own."""
        database, schema = self._make_database(self.settings), self.settings.schema
        database.check = lambda connection: migrations.check(connection, schema)
        database.on_unsettled = self._settle
        return self._first("store", Store(database))

    def stores_of_lease(self) -> Callable[[], Store]:
        """Return a function that makes stores which share nothing with any other, for this worker's lease."""
        database = self._make_database(self.settings)
        deadline = self.settings.renewal_deadline.total_seconds()
        return lambda: Store(database.detached(deadline))

    @cached_property
    def publisher(self) -> Publisher:
        """Publishes the messages of jobs."""
        return self._first("publisher", Publisher(self._app, fast_publish=self.settings.fast_publish))

    @cached_property
    def submitter(self) -> Submitter:
        """Stores jobs and publishes them."""
        return self._first("submitter", Submitter(self.store, self.publisher, self.routing))

    @cached_property
    def settler(self) -> Settler:
        """Settles the jobs that end in this process."""
        settler = Settler(self.store, self.submitter.send_reserved, lambda: self.publisher.eager)
        return self._first("settler", settler)

    def _settle(self, job_ids: Sequence[int]) -> None:
        self.settler.settle(job_ids)  # made at the first use

    @cached_property
    def routing(self) -> Routing:
        """Resolves where Celery would send a task."""
        return self._first("routing", Routing(self._app))

    @cached_property
    def completion(self) -> CompletionPoller:
        """Polls for all waits of this process."""
        return self._first("completion", CompletionPoller(self.store, assert_will_not_block))

    def _first(self, name: str, made: T) -> T:
        # From Python 3.12 on two threads may make one each, and both must have the same.
        first: T = self.__dict__.setdefault(name, made)
        return first

    def handle(
        self, username: str | None = None, groupname: str | None = None, run: Run | None = None
    ) -> JobHandle:
        """Return a new handle: of a user or, without one, of the service; in a body, of its run."""
        return JobHandle(self.submitter, self.completion, username, groupname, run=run)

    def attach(self, job_id: int) -> JobHandle:
        """Return a handle of the service that is attached to a job.

        Raises:
            UnknownJobError: there is no job of that id.
        """
        handle = self.handle()
        handle.attach(job_id)
        return handle

    def close(self) -> None:
        """Publish what is pending, then close the connections of the parts that were used."""
        with ExitStack() as stack:  # an error of one part leaves no other open
            if "publisher" in self.__dict__:
                stack.callback(self.publisher.close)
            if "store" in self.__dict__:
                stack.callback(self.store.database.close)
            if "submitter" in self.__dict__:
                stack.callback(self.submitter.drain)
            if "settler" in self.__dict__:
                stack.callback(self.settler.drain)

    def current_worker(self) -> Worker:
        """Return the worker that runs bodies in this process."""
        if self.worker is not None:
            return replace(self.worker, pid=os.getpid())
        return self.eager_worker()

    def eager_worker(self) -> Worker:
        """Return this process as a worker without a lease, which runs bodies eagerly."""
        return Worker(f"{socket.gethostname()}:{os.getpid()}", None, os.getpid())


def runtime_of(app: Celery) -> Runtime:
    """Return the runtime of an app that has `Jobs`.

    Raises:
        ConfigurationError: it has none.
    """
    runtime: Runtime | None = getattr(app, _ATTRIBUTE, None)
    if runtime is None:
        raise ConfigurationError(f"{app!r} has no Jobs: make Jobs(app, database) before it is used")
    return runtime
