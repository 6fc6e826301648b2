"""An upgrade keeps the rows that older code has written, and what they promise."""

import uuid
from collections.abc import Iterator

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, select, text

from jobhandle_celery import migrations
from jobhandle_celery.schema import clock, job, job_event
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import Database, Selection, engine_maker
from tests.store.bench import TASK, Bench, new_job


@pytest.fixture
def engine(empty_database_url: str) -> Iterator[Engine]:
    door = Database(engine_maker(empty_database_url), Bench(empty_database_url).settings)
    yield door.engine
    door.close()


def upgrade_to(engine: Engine, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(migrations.__path__[0]))
    config.attributes["schema"] = None
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        connection.commit()


def insert_as_the_first_revision_did(connection: Connection, **given: object) -> int:
    values = {
        **dict.fromkeys(("publish_count", "republish_deferrals", "attempt", "lost_count"), 0),
        **dict.fromkeys(("terminate", "revoke_reported"), False),
        "namespace": "default",
        "task": TASK,
        "task_id": str(uuid.uuid4()),
        "args": '["é"]',
        "kwargs": "{}",
        "message": "für später",
        "routing": "{}",
        "max_attempts": 1,
        "submitted": clock(),
        "status_id": JobStatus.SUBMITTED,
        **given,
    }
    connection.execute(job.insert().values(values))
    job_id: int = connection.execute(select(job.c.id).where(job.c.task_id == values["task_id"])).scalar_one()
    connection.execute(
        job_event.insert().values(
            job_id=job_id, at=clock(), attempt=0, status_id=JobStatus.SUBMITTED, message="ä", actor="service"
        )
    )
    return job_id


def test_rows_of_the_first_revision_survive_the_upgrade(engine: Engine, empty_database_url: str) -> None:
    upgrade_to(engine, "0001")
    bench = Bench(empty_database_url)
    keyed = new_job(username="ann", unique_key="k").columns("default")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE shop_order (job_id BIGINT REFERENCES jobhandle_job (id))"))
        plain = insert_as_the_first_revision_did(connection)
        kept = insert_as_the_first_revision_did(
            connection, username="ann", unique_key="k", unique_hash=keyed["unique_hash"]
        )
        connection.execute(text("INSERT INTO shop_order VALUES (:id)"), {"id": plain})
    migrations.upgrade(engine)
    rows = [bench.row(job_id) for job_id in (plain, kept)]
    assert [(row["message"], row["args"], row["username"]) for row in rows] == [
        ("für später", '["é"]', None),
        ("für später", '["é"]', "ann"),
    ]
    assert [event.message for event in bench.store.events(plain)] == ["ä"]
    assert bench.submit(username="ann", unique_key="k") == kept
    assert [found.id for found in bench.store.find(Selection(username="ann"), None, 10)] == [kept]
    assert bench.store.finish(bench.run(kept), '"😀"')
    assert bench.submit(username="ann", unique_key="k") > kept
    bench.close()
