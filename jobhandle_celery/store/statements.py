"""Statements that are built once, and the transition of a job as data.

SQLAlchemy needs more time to build a statement than to execute it. A statement that is executed for every job
is therefore built at its first use, in a function under `functools.cache`: `param` marks a value of the call
and `setting` one of the settings.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    BindParameter,
    Column,
    ColumnElement,
    Double,
    any_,
    bindparam,
    func,
    insert,
    literal,
    literal_column,
    select,
    true,
    update,
)

from ..column_types import Status
from ..schema import clock, job, job_event
from ..settings import Settings
from ..status import JobStatus

Guard = ColumnElement[bool]
"""A condition in the statement that changes a row: a row that fails it is not changed."""


def param(column: Column[Any], name: str | None = None) -> BindParameter[Any]:
    """Return the parameter for a column's value, named after the column or by `name`."""
    return bindparam(f"param_{name or column.name}", type_=column.type)


def params(**values: Any) -> dict[str, Any]:
    """Return the values of a call, by the names of their parameters."""
    return {f"param_{name}": value for name, value in values.items()}


_DURATIONS = ("lease", "republish_after", "publish_grace", "unbroken", "pass_interval")

NAMESPACE: BindParameter[str] = bindparam("setting_namespace", type_=job.c.namespace.type)
"""The namespace of the store; `Executor.execute` supplies it."""


def setting(name: str) -> BindParameter[float]:
    """Return the parameter for a duration of the settings, in seconds."""
    return bindparam(f"setting_{name}", type_=Double())


def ago(name: str) -> BindParameter[float]:
    """Return the parameter for a duration of the settings, in negative seconds."""
    return bindparam(f"setting_{name}_ago", type_=Double())


def setting_params(settings: Settings) -> dict[str, Any]:
    """Return the values of all `setting` parameters."""
    values: dict[str, Any] = {NAMESPACE.key: settings.namespace}
    for name in _DURATIONS:
        seconds = getattr(settings, name).total_seconds()
        values |= {setting(name).key: seconds, ago(name).key: -seconds}
    return values


def status_literal(status: JobStatus) -> ColumnElement[JobStatus]:
    """Return a status as literal SQL, which saves a parameter in every execution."""
    return literal_column(str(status.id), Status())


THESE: Guard = job.c.id.in_(bindparam("these", expanding=True))

IN_ARRAY: Guard = job.c.id == any_(bindparam("ids", type_=ARRAY(BigInteger)))
"""The jobs whose ids are in an array (PostgreSQL).

A statement that finds up to some hundred jobs by a document has this condition, too. PostgreSQL estimates a
hundred rows for a document: it would read a small table as a whole, and keep that plan while the table grows.
For an array it estimates ten, and a plan that it keeps compares each job with each row of the document. A
statement for thousands of jobs has no array: one for 4,000 took 2.2 s with it, and 0.1 s without.
"""


def select_unlocked(*guards: Guard) -> Any:
    """Return a select that locks the rows that pass the guards, and skips those that are locked already.

    The lock is no stronger than that of an UPDATE: on PostgreSQL it does not conflict with the foreign key
    check of a caller's transaction.
    """
    return select(job.c.id).where(*guards).with_for_update(skip_locked=True, key_share=True)


def is_unlocked(*guards: Guard) -> Guard:
    """Return the condition of a row that `select_in_order` locks, within one statement (PostgreSQL)."""
    return job.c.id.in_(select(select_unlocked(*guards).cte("free").c.id))


MAX_CHANGED = 5_000
"""Rows that one statement changes: it is given up if it gets no answer for some seconds."""


def select_in_order(*guards: Guard, most: int | None = None) -> Any:
    """Return a select that locks the rows that pass the guards, one after another in the order of their ids.

    With `most`, only so many, those with the lowest ids.

    A statement that waits for a lock holds those of the rows before it. If all lock in one order, no two wait
    for each other. An UPDATE locks in the order of its plan, and so does MariaDB whatever its ORDER BY is:
    there the statement has to read the rows by their ids (`THESE`).
    """
    by_id = "FORCE INDEX (PRIMARY)"
    found = select(job.c.id).where(*guards).order_by(job.c.id).limit(most).with_for_update(key_share=True)
    return found.with_hint(job, by_id, "mysql").with_hint(job, by_id, "mariadb")


def is_locked_in_order(*guards: Guard, most: int | None = None) -> Guard:
    """Return the condition of a row that `select_in_order` locks, within one statement (PostgreSQL)."""
    return job.c.id.in_(select(select_in_order(*guards, most=most).cte("in_order").c.id))


NO_FLUSH: Guard = select(func.set_config("synchronous_commit", "off", true())).scalar_subquery().is_not(None)
"""Always true: the commit of a statement with this condition does not wait for the disk (PostgreSQL)."""


class Transition:
    """A change of status: its guards, the new values, and the reason and actor of its event."""

    def __init__(
        self,
        *guards: Guard,
        to: Mapping[str, Any],
        reason: str | ColumnElement[str],
        actor: str | ColumnElement[str],
        skip_locked: bool = False,
        many: bool = False,
        most: int | None = None,
        locked: bool = False,
        flush: bool = True,
        also: Sequence[ColumnElement[Any]] = (),
    ) -> None:
        """Describe the transition.

        Args:
            guards: Which rows it changes.
            to: The new values.
            reason: The message of its event.
            actor: Who causes it.
            skip_locked: It leaves locked rows alone.
            many: It may change several rows, and waits for locked ones: it locks them in order.
            most: With `many`, the number of rows that it changes, those with the lowest ids; None: all.
            locked: With `many`, without `most`: the transaction has locked the rows (`lock_in_order`).
            flush: Its commit waits for the disk; without, a crash of the database may undo it (PostgreSQL).
            also: Further columns of the changed rows that `Executor.apply` returns.
        """
        self.guards = guards
        self.many = many
        self.most = most
        self._skip_locked = skip_locked
        self._locked = locked
        self._flush = flush
        self._to = to
        self.ends = "unsettled" in to
        """Its rows end: the executor collects those that are unsettled."""
        columns = event_columns(reason, actor) + ((job.c.unsettled,) if self.ends else ())
        self._columns = tuple(dict.fromkeys((*columns, *also)))

    # For PostgreSQL: one statement, which holds the row's lock for no round trip.

    @cached_property
    def statement(self) -> Any:
        """Change the rows and append their events; returns the changed rows."""
        return with_event(self._changed)

    @cached_property
    def counting_statement(self) -> Any:
        """The same; returns the number of changed rows, and the ids of those that are unsettled, or NULL."""
        if not self.ends:
            return with_event(self._changed, lambda _: [func.count()])
        return with_event(
            self._changed, lambda moved: [func.count(), func.array_agg(moved.c.id).filter(moved.c.unsettled)]
        )

    @property
    def _changed(self) -> Any:
        guards = list(self.guards)
        if self._skip_locked:
            guards.append(is_unlocked(*guards))
        elif self.many and not self._locked:
            # A row that has waited for its lock has passed the guards again: no need to repeat them.
            guards = [is_locked_in_order(*guards, most=self.most)]
        if not self._flush:
            guards.append(NO_FLUSH)
        return update(job).where(*guards).values(**self._to).returning(*self._columns)

    # For MariaDB, which has no UPDATE ... RETURNING, and SQLite 3.40, where a NULL in RETURNING IS NOT NULL:
    # three statements. The first locks the rows (on SQLite the transaction does), so that the guards, which
    # read the clock, decide only once.

    @cached_property
    def select_ids(self) -> Any:
        """Lock the rows that pass the guards; returns their ids."""
        if self._skip_locked:
            return select_unlocked(*self.guards)
        found = select(job.c.id).where(*self.guards)
        return (found if self.most is None else found.order_by(job.c.id).limit(self.most)).with_for_update()

    @cached_property
    def update_rows(self) -> Any:
        """Change the rows with these ids."""
        return update(job).where(THESE).values(**self._to)

    @cached_property
    def select_rows(self) -> Any:
        """Return the changed rows, from which their events are made."""
        return select(*self._columns).where(THESE)


def event_columns(
    reason: str | ColumnElement[str], actor: str | ColumnElement[str]
) -> tuple[ColumnElement[Any], ...]:
    """Return the columns of a changed row: those of its event, and those that identify the job."""
    return (
        job.c.id,
        job.c.task_id,
        job.c.task,
        job.c.attempt,
        job.c.status_id,
        _as_column(reason).label("reason"),
        _as_column(actor).label("actor"),
    )


def with_event(changed: Any, wanted: Callable[[Any], Sequence[ColumnElement[Any]]] | None = None) -> Any:
    """Return a statement that changes rows and appends an event for each; it returns the changed rows.

    With `wanted`, only these columns: the driver needs time for each column of each job.
    """
    moved = changed.cte("moved")
    event = select(moved.c.id, clock(), moved.c.attempt, moved.c.status_id, moved.c.reason, moved.c.actor)
    logged = insert(job_event).from_select(
        ["job_id", "at", "attempt", "status_id", "message", "actor"], event
    )
    selected = select(moved) if wanted is None else select(*wanted(moved)).select_from(moved)
    return selected.add_cte(logged.cte("logged"))


def _as_column(value: str | ColumnElement[str]) -> ColumnElement[str]:
    return literal(value) if isinstance(value, str) else value
