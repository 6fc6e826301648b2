"""Redirects an app to a test's database and mailbox, and its result backend into memory."""

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from unittest.mock import patch

from celery import Celery
from celery.app import backends
from celery.result import assert_will_not_block  # type: ignore[attr-defined]  # not in its stubs

from .. import celery_compat, settings
from ..completion import CompletionPoller, Wait, WaitCondition
from ..durable.publishing import durable_tasks
from ..errors import WaitTimeoutError
from ..jobs import Jobs
from ..runtime import Runtime
from .database import DatabaseOfTests
from .mailbox import Mailbox, Transport, connect

_WITHOUT_SERVER = ("disabled", "jobhandle", "cache+memory")
"""Result backends that are left as they are."""


class TestRuntime(Runtime):
    """The runtime of an app during one test."""

    __test__ = False

    def __init__(self, app: Celery, database: DatabaseOfTests) -> None:
        super().__init__(app, database.database)
        self._of_tests = database
        self.thread = threading.get_ident()
        """The thread of the test."""
        self.runs_elsewhere = False
        """Another thread runs jobs."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Note that this thread runs jobs, within the block."""
        before, self.runs_elsewhere = self.runs_elsewhere, threading.get_ident() != self.thread
        try:
            yield
        finally:
            self.runs_elsewhere = before

    @cached_property
    def completion(self) -> CompletionPoller:
        """The waits of this process; one that cannot end fails at once."""
        return _Poller(self)

    @cached_property
    def settings(self) -> settings.Settings:
        """The settings of the app, as far as a test can have them."""
        return self._of_tests.settings(settings.read(self._app.conf.get))


class _Poller(CompletionPoller):
    """Refuses the waits of the thread, or of the only coroutine, that would have to run what it waits for."""

    def __init__(self, runtime: "TestRuntime") -> None:
        super().__init__(runtime.store, assert_will_not_block)
        self._runtime = runtime

    def begin(self, condition: WaitCondition, *, at_once: bool = False) -> Wait:
        if self._may_end():
            return super().begin(condition, at_once=at_once)
        found = self.look(condition)
        if found is None:
            raise WaitTimeoutError(
                f"job {condition.job_id} has not ended, and nothing runs it while its test waits: "
                "call jobs.run_jobs() before"
            )
        wait = Wait()
        wait.set_result(found)
        return wait

    def _may_end(self) -> bool:
        if threading.get_ident() != self._runtime.thread or self._runtime.runs_elsewhere:
            return True
        try:
            return len(asyncio.all_tasks()) > 1  # another one may run jobs
        except RuntimeError:
            return False  # no event loop runs


@contextmanager
def redirected(
    jobs: Jobs, database: DatabaseOfTests, conf: Mapping[str, Any]
) -> Iterator[tuple[TestRuntime, Mailbox]]:
    """Redirect the app of a `Jobs` within the block, with these settings; afterwards it is as it was.

    The object `jobs` stays the one that the service has. Handles that were opened before the block are not
    redirected.
    """
    app = jobs._app
    changes: Any = app.conf.changes
    before = dict(changes)
    former = jobs._runtime
    try:
        app.conf.update(conf)
        with (
            celery_compat.without_servers(app, connect, _backend(app)),
            patch.object(jobs, "_database", database.database),
            patch.object(Transport, "mailbox", Mailbox()) as mailbox,
        ):
            jobs._runtime = runtime = TestRuntime(app, database)
            _forget(app)
            try:
                yield runtime, mailbox
            finally:
                runtime.close()
    finally:
        jobs._runtime = former
        former.install()
        changes.clear()
        changes.update(before)
        _forget(app)


def _backend(app: Any) -> Any:
    """Return a result backend in memory to replace the app's; None if that needs no server."""
    configured = app.backend_cls or app.conf.result_backend
    if not configured or (isinstance(configured, str) and configured.startswith(_WITHOUT_SERVER)):
        return None
    by_url: Any = backends.by_url  # its stubs have another type
    kind, url = by_url("cache+memory://", app.loader)
    return kind(app=app, url=url)


def _forget(app: Celery) -> None:
    """Forget what depends on the settings and on the result backend."""
    durable_tasks(app).forget()
    for task in celery_compat.registered_tasks(app).values():
        task.__trace__ = None
