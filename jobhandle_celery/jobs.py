"""`Jobs`: the one object a service makes, and the only wiring. May import everything."""

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery import Celery
from sqlalchemy import URL, Engine

from . import migrations, validation
from .errors import ApiUsageError, ConfigurationError, shown
from .handle import JobHandle
from .models import Event, Job, JobRecord
from .runtime import Runtime
from .settings import Settings
from .status import JobStatus
from .store import Database, Selection, Store, engine_maker
from .sweeper import sweep
from .worker import bootstep, instrumentation, message_guard

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, scoped_session

MOST_FOUND = 10_000
"""The largest `limit` of a `find`; page with `before` for more."""


class Jobs:
    """Durable jobs for a Celery app.

    Making one wires the app, opens no connection and starts no thread: every task of the app, registered
    already or later, claims its job before its body when it is sent as a job; workers of the app get a lease
    and sweep. Found again as ``app.jobs``.

    Settings are Celery configuration keys, durations in seconds or as `timedelta`, and may be set until first
    use: ``jobhandle_database_url``, ``jobhandle_lease`` (60 s), ``jobhandle_sweep_interval`` (1 s),
    ``jobhandle_republish_after`` (60 s, doubling to at most 15 min), ``jobhandle_publish_grace`` (5 s),
    ``jobhandle_namespace``, ``jobhandle_schema``.
    """

    def __init__(self, app: Celery, database: str | URL | Callable[[], Engine] | None = None) -> None:
        """Wire the app.

        Args:
            app: The Celery app whose tasks are to be jobs.
            database: A URL, as text or SQLAlchemy's; or a function that makes a new Engine at each call,
                for this library alone: how its sessions begin is changed, and it is disposed of. None: the
                configuration key ``jobhandle_database_url``.

        Raises:
            ApiUsageError: the app has jobs already, or is none.
            ConfigurationError: not a database URL, or its driver is not installed or asynchronous.
        """
        if not isinstance(app, Celery):
            raise ApiUsageError(f"app: {shown(app)} is not a Celery app")
        if isinstance(getattr(app, "jobs", None), Jobs):
            raise ApiUsageError(f"{app!r} has jobs already: app.jobs")
        self._app = app
        self._make_engine = None if database is None else engine_maker(database)
        self._runtime = Runtime(app, self._door)
        app.jobs = self  # type: ignore[attr-defined]  # where everyone finds it
        instrumentation.instrument_app(app)
        bootstep.install(app)
        message_guard.install(app)

    def handle(self, username: str | None = None, groupname: str | None = None) -> JobHandle:
        """Open a handle, for a user, or without a username for the service itself, which sees all jobs.

        A web service gives the name of the user who is logged in. A name that may be None would open the
        service's own handle for whoever has not logged in.

        Raises:
            ConfigurationError: a setting is missing or wrong.
            ValidationError: a name was refused.
        """
        return self._runtime.handle(username, groupname)

    def attach(self, job_id: int) -> JobHandle:
        """Open a handle of the service's own on that job.

        Raises:
            UnknownJobError: there is none of that id.
        """
        handle = self.handle()
        handle.attach(job_id)
        return handle

    def submit_many(
        self,
        jobs: Iterable[object],
        *,
        username: str | None = None,
        groupname: str | None = None,
        session: "Session | scoped_session[Any] | None" = None,
    ) -> list[int]:
        """Submit jobs and signatures, all or none, in one transaction; return their ids, in order.

        All for one user. The id of one whose `unique_key` an unfinished job has is that job's. Raises as
        `JobHandle.submit` does.
        """
        if isinstance(jobs, (Job, Mapping)) or not isinstance(jobs, Iterable):
            raise ApiUsageError("submit_many takes several jobs, in a list or the like; submit takes one")
        submitted = self._runtime.submitter.submit(
            list(jobs),
            validation.name("username", username),
            validation.name("groupname", groupname),
            session,
        )
        return [one.job_id for one in submitted]

    def find(
        self,
        status: str | Iterable[str] | None = None,
        task: str | None = None,
        username: str | None = None,
        before: int | None = None,
        limit: int = 100,
        ids: Iterable[int] | None = None,
    ) -> list[JobRecord]:
        """Return the newest jobs that fit, newest first.

        Args:
            status: One status, or several.
            task: The name of a task.
            username: Whose.
            before: Only ids below this one; the last id of a page gives the next page.
            limit: How many at most, up to 10,000.
            ids: Only these.
        """
        validation.whole("limit", limit, 1, MOST_FOUND)
        below = (
            None
            if before is None
            else min(validation.whole("before", before, 0, 2**200), validation.LARGEST_ID)
        )
        return self._store.find(_selection(status, task, username, ids), below, limit)

    def events(self, job_id: int) -> list[Event]:
        """Return a job's moves in their order: why it is in this state. Empty if there is no such job."""
        return self._store.events(validation.job_id(job_id))

    def count_by_status(self) -> dict[JobStatus, int]:
        """Return how many jobs are in each of the nine statuses."""
        return self._store.count_by_status()

    def cancel_many(
        self,
        task: str | None = None,
        status: str | Iterable[str] | None = None,
        username: str | None = None,
        ids: Iterable[int] | None = None,
        *,
        terminate: bool = False,
    ) -> int:
        """Cancel every unfinished job that fits; return how many were cancelled or asked to stop.

        With `terminate`, the processes of bodies that run are ended, as by `JobHandle.cancel_job`. Fewer,
        should a connection have broken just then: what was done already is not counted again.

        Raises:
            ApiUsageError: nothing was given; to cancel everything, name the statuses.
        """
        if task is None and status is None and username is None and ids is None:
            raise ApiUsageError("cancel_many needs a task, a status, a username or ids")
        return self._store.cancel_selected(
            _selection(status, task, username, ids), terminate=validation.flag("terminate", terminate)
        )

    def sweep(self) -> bool:
        """Make one pass of the sweep; False if somebody made one less than an interval ago."""
        return sweep(self._store, self._runtime.publisher)

    def prune(self, older_than: timedelta | float) -> int:
        """Delete jobs that ended longer ago than that (seconds, or a `timedelta`); return how many.

        For good, with their events, in pieces of their own transactions. Nothing is deleted but by this call.
        """
        return self._store.prune(validation.age("older_than", older_than))

    def upgrade_schema(self, *, sql: bool = False) -> None:
        """Make the tables, or bring them to the revision that this code needs. Safe to call at any time.

        With `sql`, print the statements instead, from an empty database on.

        Raises:
            SchemaError: they are newer than this code.
        """
        settings = self._runtime.settings
        door = self._door(settings)
        door.deadline = None
        try:
            with door.upgrading() as engine:
                migrations.upgrade(engine, settings.schema, sql=sql)
        finally:
            door.close()

    def close(self) -> None:
        """Close this process's connections to the database and to the broker; the next use opens new."""
        self._runtime.submitter.drain()
        self._store.door.close()
        self._runtime.publisher.close()

    @property
    def _store(self) -> Store:
        # Whoever looks finds what this process has done before.
        self._runtime.submitter.marks.flush_once()
        return self._runtime.store

    def _door(self, settings: Settings) -> Database:
        if self._make_engine is None:
            url = self._app.conf.get("jobhandle_database_url")
            if not url:
                raise ConfigurationError(
                    "No database: give Jobs(app, 'postgresql+psycopg://…') one, "
                    "or set app.conf.jobhandle_database_url."
                )
            self._make_engine = engine_maker(url)
        return Database(self._make_engine, settings)

    def __repr__(self) -> str:
        return f"<Jobs of {self._app.main}>"


def _selection(status: object, task: object, username: object, ids: object) -> Selection:
    return Selection(
        statuses=validation.statuses(status),
        task=validation.name("task", task),
        username=validation.name("username", username),
        ids=validation.job_ids(ids),
    )
