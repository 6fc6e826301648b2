"""`Jobs`: the object that a service creates, and the only wiring."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

from celery import Celery
from sqlalchemy import URL, Engine

from . import migrations, validation
from .async_handle import AsyncJobHandle
from .durable import publishing
from .durable.scope import Scope
from .errors import ApiUsageError, ConfigurationError, ValidationError, shown
from .handle import JobHandle
from .models import Event, Job, JobRecord
from .runtime import Runtime
from .settings import Settings
from .status import JobStatus
from .store import Database, Selection, Store, engine_maker
from .sweeper import sweep
from .worker import bootstep, instrumentation, message_guard

if TYPE_CHECKING:
    from celery.canvas import Signature
    from sqlalchemy.orm import Session, scoped_session

MAX_FOUND = 10_000
"""The largest `limit` of a `find`; page with `before` for more."""


class _AllUsers:
    def __repr__(self) -> str:
        return "<all users>"


class _Inherited:
    def __repr__(self) -> str:
        return "<of the outer block>"


INHERITED: Any = _Inherited()
"""The default of `Jobs.submitting`: what the block around it says."""

ALL_USERS: Any = _AllUsers()
"""The default of a username: the service itself, which sees all users' jobs."""


class Jobs:
    """Durable jobs for a Celery app.

    Creating it wires the app, opens no connection and starts no thread. Every task of the app, registered
    before or after, claims its row before its body runs, if it was submitted as a job; workers of the app
    renew a lease and run the sweeper. It is also ``app.jobs``.

    Settings are Celery configuration keys, durations in seconds or as `timedelta`, and may be set until first
    use: ``jobhandle_database_url``, ``jobhandle_lease`` (60 s), ``jobhandle_sweep_interval`` (1 s),
    ``jobhandle_republish_after`` (60 s, doubling to at most 15 min), ``jobhandle_publish_grace`` (5 s),
    ``jobhandle_namespace``, ``jobhandle_schema``.
    """

    def __init__(self, app: Celery, database: str | URL | Callable[[], Engine] | None = None) -> None:
        """Wire the app.

        Args:
            app: The Celery app whose tasks can be jobs.
            database: A URL, as text or SQLAlchemy's; or a function that returns a new Engine at each call,
                for this library alone, which configures its sessions and disposes of it. None: the
                configuration key ``jobhandle_database_url``.

        Raises:
            ApiUsageError: not a Celery app, or one that has a `Jobs`.
            ConfigurationError: not a database URL, or its driver is not installed or asynchronous.
        """
        if not isinstance(app, Celery):
            raise ApiUsageError(f"app: {shown(app)} is not a Celery app")
        if isinstance(getattr(app, "jobs", None), Jobs):
            raise ApiUsageError(f"{app!r} has a Jobs already: use app.jobs")
        self._app = app
        self._make_engine = None if database is None else engine_maker(database)
        self._runtime = Runtime(app, self._database)
        app.jobs = self  # type: ignore[attr-defined]  # its documented place
        self._durable = publishing.install(app)
        instrumentation.instrument_app(app)
        bootstep.install(app)
        message_guard.install(app)

    def handle(self, *, username: str = ALL_USERS, groupname: str | None = None) -> JobHandle:
        """Open a handle.

        Args:
            username: The user whose jobs the handle sees. If omitted, the handle sees the jobs of all users.
            groupname: The group of the jobs that the handle submits.

        Raises:
            ConfigurationError: a setting is missing or wrong.
            ValidationError: a name is invalid. A username of None is, too: it would show the jobs of all
                users to a web client that has not logged in.
        """
        return self._runtime.handle(_user(username), groupname)

    def async_handle(self, *, username: str = ALL_USERS, groupname: str | None = None) -> AsyncJobHandle:
        """Open a handle whose operations are coroutines; the arguments and errors are those of `handle`."""
        return AsyncJobHandle(self.handle(username=username, groupname=groupname))

    def attach(self, job_id: int, *, username: str = ALL_USERS) -> JobHandle:
        """Open a handle, as `handle` does, that is attached to a job.

        Raises:
            UnknownJobError: there is no job of that id, or it belongs to another user.
        """
        handle = self.handle(username=username)
        handle.attach(job_id)
        return handle

    def submit(
        self,
        job: "Job | Signature[Any]",
        *,
        username: str | None = None,
        groupname: str | None = None,
        session: "Session | scoped_session[Any] | None" = None,
    ) -> int:
        """Submit one `Job` or Celery signature, as `JobHandle.submit` does, and return its id."""
        return self._submit([job], username, groupname, session)[0]

    def submit_many(
        self,
        jobs: "Iterable[Job | Signature[Any]]",
        *,
        username: str | None = None,
        groupname: str | None = None,
        session: "Session | scoped_session[Any] | None" = None,
    ) -> list[int]:
        """Submit jobs and signatures, all or none, in one transaction; return their ids, in order.

        The id of a job whose `unique_key` an unfinished job has is that job's. Raises as `JobHandle.submit`
        does.
        """
        if isinstance(jobs, (Job, Mapping)) or not isinstance(jobs, Iterable):
            raise ApiUsageError("submit_many takes several jobs, in a list or the like; submit takes one")
        return self._submit(list(jobs), username, groupname, session)

    @contextmanager
    def submitting(
        self,
        *,
        username: str = INHERITED,
        groupname: str | None = INHERITED,
        session: "Session | scoped_session[Any] | None" = INHERITED,
    ) -> Iterator[None]:
        """Say for whom, and in whose transaction, Celery's calls of durable tasks submit jobs in this block.

        It holds in this thread and coroutine alone. What an inner block leaves out is that of the outer one.

        Args:
            username: The user of the jobs. Left out of all blocks: the service's own jobs; None is refused.
            groupname: The group of the jobs.
            session: The rows join its transaction, and messages are published after its commit; None: each
                call has a transaction of its own.

        Raises:
            ValidationError: a name is invalid.
        """
        outer = self._durable.scope.current
        scope = Scope(
            outer.username if username is INHERITED else _user(username),
            outer.groupname if groupname is INHERITED else validation.name("groupname", groupname),
            outer.session if session is INHERITED else session,
        )
        with self._durable.scope.entered(scope):
            yield

    def find(
        self,
        *,
        status: str | Iterable[str] | None = None,
        task: str | None = None,
        username: str = ALL_USERS,
        groupname: str | None = None,
        ids: Iterable[int] | None = None,
        since: datetime | timedelta | float | None = None,
        until: datetime | timedelta | float | None = None,
        root: int | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> list[JobRecord]:
        """Return the newest jobs that fit all filters, newest first; members of trees are jobs like others.

        Args:
            status: One status, or several.
            task: The name of a task.
            username: The user of the jobs. Left out: all users; None is refused.
            groupname: The group of the jobs.
            ids: Only these.
            since: Submitted at or after this moment, or at most this long ago.
            until: Submitted before this moment, or longer ago than this.
            root: Only the members of this tree, not the root itself.
            before: Only ids below this one; the last id of a page gives the next page.
            limit: How many at most, up to 10,000.
        """
        validation.whole("limit", limit, 1, MAX_FOUND)
        below = None if before is None else validation.first_beyond(before)
        selection = _selection(status, task, username, groupname, ids, since, until, root)
        return self._store().pages.find(selection, below, limit)

    def count_by_status(
        self,
        *,
        status: str | Iterable[str] | None = None,
        task: str | None = None,
        username: str = ALL_USERS,
        groupname: str | None = None,
        ids: Iterable[int] | None = None,
        since: datetime | timedelta | float | None = None,
        until: datetime | timedelta | float | None = None,
        root: int | None = None,
    ) -> dict[JobStatus, int]:
        """Return how many of the jobs that fit all filters are in each of the nine statuses.

        The filters are those of `find`. A chain, group or chord is a job, and so is each of its members.
        """
        return self._store().queries.count_by_status(
            _selection(status, task, username, groupname, ids, since, until, root)
        )

    def cancel_many(
        self,
        *,
        status: str | Iterable[str] | None = None,
        task: str | None = None,
        username: str = ALL_USERS,
        groupname: str | None = None,
        ids: Iterable[int] | None = None,
        since: datetime | timedelta | float | None = None,
        until: datetime | timedelta | float | None = None,
        root: int | None = None,
        terminate: bool = False,
    ) -> int:
        """Cancel every unfinished job that fits all filters; return how many were cancelled or asked to stop.

        The filters are those of `find`; `terminate` is that of `JobHandle.cancel_job`. After a broken
        connection the call is repeated, and the count leaves out what the first attempt has done.

        Raises:
            ApiUsageError: no filter was given; to cancel everything, name the statuses.
        """
        selection = _selection(status, task, username, groupname, ids, since, until, root)
        if selection == Selection():
            raise ApiUsageError("cancel_many needs a filter: a status, a task, a username, ids, ...")
        return self._store().control.cancel_selected(
            selection, terminate=validation.flag("terminate", terminate)
        )

    def events(self, job_id: int, *, username: str = ALL_USERS) -> list[Event]:
        """Return a job's moves in their order: why it is in its status. Empty if there is no such job.

        With a username, other users' jobs have no events.
        """
        return self._store().queries.events(validation.job_id(job_id), _user(username))

    def sweep(self) -> bool:
        """Sweep once; return False if another process has swept within the interval."""
        return sweep(self._store(), self._runtime.publisher)

    def prune(self, older_than: timedelta | float) -> int:
        """Delete jobs that ended longer ago than that (seconds, or a `timedelta`); return how many.

        With their events, in several transactions. Nothing else deletes jobs.
        """
        return self._store().sweep.prune(validation.age("older_than", older_than))

    def upgrade_schema(self, *, sql: bool = False, from_revision: str | None = None) -> None:
        """Create the tables, or migrate them to the revision that this version needs; safe to repeat.

        Args:
            sql: Only print the statements.
            from_revision: With `sql`, the revision of the tables that they are for, ``"base"`` for an empty
                database; the database is not asked. None: the revision of the database.

        Raises:
            SchemaError: the tables are newer than this version.
            ValidationError: there is no such revision, or `sql` is not set.
            DatabaseUnavailableError: the database did not answer.
        """
        revisions = (migrations.EMPTY, *migrations.REVISIONS)
        if from_revision is not None and (not sql or from_revision not in revisions):
            raise ValidationError("from_revision", from_revision, f"with sql, one of {', '.join(revisions)}")
        settings = self._runtime.settings
        database = self._database(settings)
        database.deadline = None
        try:
            with database.ready() as engine:
                if sql and from_revision is None:
                    from_revision = migrations.revision_of(engine, settings.schema)
                migrations.upgrade(engine, settings.schema, print_from=from_revision)
        finally:
            database.close()

    def close(self) -> None:
        """Close this process's connections to the database and the broker; the next use opens new ones."""
        self._runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _submit(
        self,
        jobs: list[object],
        username: str | None,
        groupname: str | None,
        session: "Session | scoped_session[Any] | None",
    ) -> list[int]:
        submitted = self._runtime.submitter.submit(
            jobs, validation.name("username", username), validation.name("groupname", groupname), session
        )
        return [job.job_id for job in submitted]

    def _store(self) -> Store:
        return self._runtime.submitter.flushed_store()

    def _database(self, settings: Settings) -> Database:
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


def _user(username: object) -> str | None:
    if username is ALL_USERS:
        return None
    if username is None:
        raise ValidationError("username", None, "a name; left out, the service's own, which sees all jobs")
    return validation.name("username", username)


def _selection(
    status: object,
    task: object,
    username: object,
    groupname: object,
    ids: object,
    since: object,
    until: object,
    root: object,
) -> Selection:
    return Selection(
        statuses=validation.statuses(status),
        task=validation.name("task", task),
        username=_user(username),
        groupname=validation.name("groupname", groupname),
        ids=validation.job_ids(ids),
        since=validation.since("since", since),
        until=validation.since("until", until),
        root=None if root is None else validation.job_id(root, "root"),
    )
