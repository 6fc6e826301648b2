"""Fills a database with copies of a job that the library itself has written."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Engine, NullPool, create_engine, func, insert, literal, select, text, true
from sqlalchemy.schema import AddConstraint, DropConstraint, UniqueConstraint

from jobhandle_celery.schema import job, job_event

BATCH_SIZE = 500_000


def clone(url: str, job_id: int, count: int, values: Mapping[str, Any] | None = None) -> None:
    """Insert copies of a job and of its events, with new ids and task ids.

    Args:
        url: URL of the database.
        job_id: The job to copy.
        count: Number of copies.
        values: Values of columns that differ, by name.
    """
    engine = create_engine(url, poolclass=NullPool)
    large = count > BATCH_SIZE
    try:
        if large:
            _without_indexes(engine)
        for start in range(0, count, BATCH_SIZE):
            with engine.begin() as connection:
                _insert_copies(connection, job_id, min(BATCH_SIZE, count - start), dict(values or {}))
        if large:
            _with_indexes(engine)
        vacuum(engine)
    finally:
        engine.dispose()


def vacuum(engine: Engine) -> None:
    """Do what autovacuum and the checkpointer do in time."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
        connection.execute(text("CHECKPOINT"))


def _insert_copies(connection: Connection, job_id: int, count: int, values: dict[str, Any]) -> None:
    # The foreign keys are valid, and checking each takes longer than the inserts. A crash may lose the rows.
    connection.execute(text("SET LOCAL session_replication_role = replica"))
    connection.execute(text("SET LOCAL synchronous_commit = off"))
    last = connection.execute(select(func.max(job.c.id))).scalar_one()
    numbers = func.generate_series(1, count).table_valued("number", name="numbers").render_derived()
    own = {"task_id": func.cast(func.gen_random_uuid(), job.c.task_id.type), **values}
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
