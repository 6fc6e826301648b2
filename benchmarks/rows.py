"""Many rows, quickly: copies of one that came about by itself, so that they are what rows really are."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Engine, NullPool, create_engine, func, insert, literal, select, text, true
from sqlalchemy.schema import AddConstraint, DropConstraint, UniqueConstraint

from jobhandle_celery.schema import job, job_event

AT_A_TIME = 500_000


def clone(url: str, job_id: int, count: int, to: Mapping[str, Any] | None = None) -> None:
    """Insert copies of a job and of its events, under ids and task ids of their own.

    Args:
        url: The database's.
        job_id: The job to copy.
        count: How many copies.
        to: Columns that differ, by name.
    """
    engine = create_engine(url, poolclass=NullPool)
    large = count > AT_A_TIME
    try:
        if large:
            _without_indexes(engine)
        for start in range(0, count, AT_A_TIME):
            with engine.begin() as connection:
                _some(connection, job_id, min(AT_A_TIME, count - start), dict(to or {}))
        if large:
            _with_indexes(engine)
        tidy(engine)
    finally:
        engine.dispose()


def tidy(engine: Engine) -> None:
    """Do what autovacuum and the checkpointer would have done by now."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
        connection.execute(text("CHECKPOINT"))


def _some(connection: Connection, job_id: int, count: int, to: dict[str, Any]) -> None:
    # Foreign keys are right by construction, and to look each of them up takes longer than all the rest;
    # what is lost by a crash is not missed.
    connection.execute(text("SET LOCAL session_replication_role = replica"))
    connection.execute(text("SET LOCAL synchronous_commit = off"))
    last = connection.execute(select(func.max(job.c.id))).scalar_one()
    numbers = func.generate_series(1, count).table_valued("number", name="numbers").render_derived()
    own = {"task_id": func.cast(func.gen_random_uuid(), job.c.task_id.type), **to}
    names = [column.name for column in job.c if column.name != "id"]
    pairs = job.join(numbers, true())
    copies = select(*(_value(own, name) for name in names)).select_from(pairs).where(job.c.id == job_id)
    connection.execute(insert(job).from_select(names, copies))
    names = [column.name for column in job_event.c if column.name not in ("id", "job_id")]
    pairs = job.join(job_event, (job.c.id > last) & (job_event.c.job_id == job_id))
    events = select(job.c.id, *(job_event.c[name] for name in names)).select_from(pairs)
    connection.execute(insert(job_event).from_select(["job_id", *names], events.order_by(job.c.id)))


def _value(own: Mapping[str, Any], name: str) -> Any:
    if name not in own:
        return job.c[name]
    value = own[name]
    return value if hasattr(value, "self_group") else literal(value, job.c[name].type)


def _without_indexes(engine: Engine) -> None:
    with engine.begin() as connection:
        for table in (job, job_event):
            for index in table.indexes:
                index.drop(connection)
        for constraint in _unique():
            connection.execute(DropConstraint(constraint, isolate_from_table=False))


def _with_indexes(engine: Engine) -> None:
    with engine.begin() as connection:
        for constraint in _unique():
            connection.execute(AddConstraint(constraint, isolate_from_table=False))
        for table in (job, job_event):
            for index in table.indexes:
                index.create(connection)


def _unique() -> list[UniqueConstraint]:
    return [constraint for constraint in job.constraints if isinstance(constraint, UniqueConstraint)]
