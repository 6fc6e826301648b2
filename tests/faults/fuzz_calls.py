"""Calls of the public operations: how each is made, and which rows it may change.

A call is drawn by Hypothesis as plain data, and made by `Caller`, which compares every row of every job
before and after it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from jobhandle_celery import Job, JobHandle, JobHandleError, JobStatus, StopRequested
from jobhandle_celery.errors import ConfigurationError, DatabaseUnavailableError, SchemaError
from tests.faults.fuzz_values import (
    ANYTHING,
    FIELDS,
    IDS,
    MESSAGES,
    SUBMITTED,
    TIMEOUTS,
    WORDS,
    Hidden,
    Hostile,
    Known,
    Signed,
)

Rows = dict[int, dict[str, Any]]
UNEXPECTED = (ConfigurationError, DatabaseUnavailableError, SchemaError)
"""Of the tree, but nothing that a caller's value may lead to."""

FINAL = {status.id for status in JobStatus if status.final}


@dataclass(frozen=True)
class Call:
    """An operation and its arguments, on a handle if `actor` names one."""

    actor: str
    operation: str
    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


ACTORS = {"ann": "ann", "bob": "bob", "ann again": "ann", "service": None, "other service": None, "new": None}
"""Six handles and their users; the last has no job at first."""

_READS: dict[str, tuple[st.SearchStrategy[Any], ...]] = {
    "attach": (IDS,),
    "wait": (TIMEOUTS,),
    "result": (TIMEOUTS,),
    **dict.fromkeys(("get_job", "job_status", "job_finished", "job_message", "job_running", "job_error"), ()),
    **dict.fromkeys(("cancel_requested", "raise_if_cancelled", "events", "__repr__", "__enter__"), ()),
}
_WRITES: dict[str, tuple[st.SearchStrategy[Any], ...]] = {
    "set_status": (WORDS,),
    "set_message": (MESSAGES,),
    "set_status_and_message": (WORDS, MESSAGES),
    "set_progress": (ANYTHING, ANYTHING),
    "resubmit_job": (),
    "release_job": (),
}
_SELECTION = {
    "status": WORDS,
    "ids": ANYTHING | st.lists(IDS),
    **dict.fromkeys(("task", "username", "groupname", "since", "until"), ANYTHING),
}
_FOUND = {**_SELECTION, "before": IDS, "limit": ANYTHING}


def _handle_calls() -> st.SearchStrategy[Call]:
    actor = st.sampled_from(list(ACTORS))
    plain = [
        st.builds(Call, actor, st.just(name), st.tuples(*arguments))
        for name, arguments in {**_READS, **_WRITES}.items()
    ]
    cancel = st.builds(
        Call,
        actor,
        st.just("cancel_job"),
        st.just(()),
        st.fixed_dictionaries({}, optional={"terminate": ANYTHING}),
    )
    submit = st.builds(
        Call,
        actor,
        st.just("submit"),
        st.tuples(SUBMITTED),
        st.just({}) | st.fixed_dictionaries({"session": ANYTHING}),
    )
    attach = st.builds(Call, actor, st.just("attach"), st.tuples(st.builds(Known, st.integers(0, 30))))
    return st.one_of(submit, submit, *plain, cancel, attach, attach, attach, attach)


def _jobs_calls() -> st.SearchStrategy[Call]:
    def call(name: str, *args: st.SearchStrategy[Any], **options: Any) -> st.SearchStrategy[Call]:
        given = st.fixed_dictionaries({}, optional=options)
        return st.builds(Call, st.just("jobs"), st.just(name), st.tuples(*args), given)

    return st.one_of(
        call(
            "submit_many", st.lists(SUBMITTED, max_size=3) | ANYTHING, username=ANYTHING, groupname=ANYTHING
        ),
        call("submit", SUBMITTED | ANYTHING, username=ANYTHING, groupname=ANYTHING),
        call("find", **_FOUND),
        call("cancel_many", **_SELECTION),
        call("events", IDS, username=ANYTHING),
        call("attach", IDS, username=ANYTHING),
        call("handle", username=ANYTHING, groupname=ANYTHING),
        call("count_by_status", **_SELECTION),
        call("prune", ANYTHING),
        call("sweep"),
    )


CLOSES = st.builds(Call, st.sampled_from(list(ACTORS)), st.just("close"))
CALLS = st.one_of(*[_handle_calls()] * 4, _jobs_calls(), _jobs_calls(), CLOSES)


class Caller:
    """Makes calls on six handles of one app, and checks what each did to the rows."""

    def __init__(self, app: Any, database_url: str) -> None:
        self._app = app
        self._engine = create_engine(database_url, isolation_level="AUTOCOMMIT")
        self._rows = self._engine.connect()
        self.handles: dict[str, JobHandle] = {}
        self.errors: dict[str, int] = {}
        self.calls = 0

    def begin(self) -> None:
        """Start over with fresh handles and one or two jobs for each user."""
        for table in ("jobhandle_job_event", "jobhandle_job"):
            self._rows.execute(text(f"DELETE FROM {table}"))
        self.handles = {
            actor: self._app.jobs.handle(**({"username": username} if username else {}))
            for actor, username in ACTORS.items()
        }
        for actor, handle in self.handles.items():
            if actor != "new":
                handle.submit(Job(task="tests.add", args=[1, 2]))

    def close(self) -> None:
        self._rows.close()
        self._engine.dispose()

    def rows(self) -> Rows:
        """Return every row of the database, pending queued marks written first."""
        self._app.jobs._runtime.submitter.queued_marker.flush()
        rows = self._rows.execute(text("SELECT * FROM jobhandle_job")).mappings()
        return {row["id"]: dict(row) for row in rows}

    def make(self, call: Call) -> None:
        """Make one call and assert that it changed only what it may."""
        self.calls += 1
        before = self.rows()
        handle = self.handles.get(call.actor)
        target = _attached(handle)
        of: Any = self._app.jobs if handle is None else handle
        operation: Callable[..., Any] = getattr(of, call.operation)
        args, options = self._real(call.args, before), self._real(dict(call.options), before)
        failed = True
        try:
            operation(*args, **options)
            failed = False
        except StopRequested:
            assert call.operation == "raise_if_cancelled"
        except JobHandleError as error:
            self._judge_error(error)
        after = self.rows()
        changed = {job_id for job_id in before | after if before.get(job_id) != after.get(job_id)}
        if failed:
            assert not changed, "a refused call changed a row"
        whose, now = ACTORS.get(call.actor), after.get(_attached(handle) or 0)
        assert whose is None or now is None or now["username"] == whose, "attached to another user's job"
        self._judge(
            call, target, options, {job_id: (before.get(job_id), after.get(job_id)) for job_id in changed}
        )

    def _judge_error(self, error: JobHandleError) -> None:
        assert not isinstance(error, UNEXPECTED), repr(error)
        message = str(error)
        assert len(message) < 1500, f"{len(message)} characters"
        for word in ("sqlite3.", "psycopg.", "pymysql.", "sqlalche.me", "[SQL:", "[parameters:"):
            assert word not in message, message
        name = type(error).__name__
        self.errors[name] = self.errors.get(name, 0) + 1

    def _judge(
        self, call: Call, target: int | None, options: Any, changes: dict[int, tuple[Any, Any]]
    ) -> None:
        whose = ACTORS.get(call.actor)
        for job_id, (was, now) in changes.items():
            if call.operation in ("submit", "submit_many"):
                assert was is None, "a submit changed another row"
                assert now["username"] == (options.get("username") if call.actor == "jobs" else whose)
            elif call.operation == "prune":
                assert now is None
                assert was["status_id"] in FINAL
            elif call.operation == "cancel_many":
                assert was["status_id"] not in FINAL
                assert options.get("username") in (None, was["username"])
            elif call.operation == "sweep":
                assert was["status_id"] not in FINAL
            else:
                assert call.operation in (*_WRITES, "cancel_job"), "a read changed a row"
                assert job_id == target, "another job's row was changed"
                assert whose in (None, was["username"]), "another user's row was changed"
            if was is not None and now is not None:
                _judge_move(call, was, now)

    def _real(self, given: Any, rows: Rows) -> Any:
        """Replace the placeholders of a call by ids and signatures."""
        if isinstance(given, Known):
            ids = sorted(rows)
            return ids[given.index % len(ids)] if ids and given.index else 10**9
        if isinstance(given, Hidden):
            return Hostile()
        if isinstance(given, Job):
            return replace(given, **{name: self._real(getattr(given, name), rows) for name in FIELDS})
        if isinstance(given, Signed):
            return (
                self._app.tasks["tests.add"]
                .s(*self._real(given.args, rows))
                .set(**self._real(given.options, rows))
            )
        if type(given) in (list, tuple):
            return type(given)(self._real(value, rows) for value in given)
        if type(given) is dict:
            return {key: self._real(value, rows) for key, value in given.items()}
        return given


def _judge_move(call: Call, was: dict[str, Any], now: dict[str, Any]) -> None:
    for column in ("id", "username", "groupname", "task", "args", "kwargs", "namespace", "unique_key"):
        assert was[column] == now[column], f"{call.operation} changed {column}"
    assert now["attempt"] >= was["attempt"]
    if was["status_id"] in FINAL and call.operation != "resubmit_job":
        assert now["status_id"] == was["status_id"], "a final status was left"
        for column in ("finished", "result", "error", "started"):
            assert was[column] == now[column], f"{call.operation} changed {column} of a final job"


def _attached(handle: JobHandle | None) -> int | None:
    try:
        return None if handle is None else handle.job_id
    except JobHandleError:
        return None
