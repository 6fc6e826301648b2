"""An application whose database holds the jobs' tables beside its own."""

import uuid
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session

from jobhandle_celery import JobStatus
from tests.apps import make_app


class Shop:
    """An app with jobs, an engine on the same database, and a broker that can be read."""

    def __init__(self, database_url: str, **settings: Any) -> None:
        self.queue = f"queue-{uuid.uuid4().hex}"
        app: Any = make_app("memory://", database_url, {"task_default_queue": self.queue, **settings})
        self.app, self.jobs = app, app.jobs
        self.engine = engine_of(database_url)
        with self.engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS shop_order (id INTEGER PRIMARY KEY)")
        # kombu's memory transport loses a message if two threads make its queue at the same time.
        self.sent()

    def order(self, session: Session, number: int) -> None:
        session.execute(sqlalchemy.text(f"INSERT INTO shop_order VALUES ({number})"))

    def orders(self) -> list[int]:
        with self.engine.connect() as connection:
            return list(connection.exec_driver_sql("SELECT id FROM shop_order ORDER BY id").scalars())

    def sent(self) -> list[int]:
        """Take the broker's messages; return their job ids, in order."""
        ids = []
        with self.app.connection() as connection:
            channel = connection.default_channel
            channel.queue_declare(queue=self.queue)
            while message := channel.basic_get(self.queue, no_ack=True):
                ids.append(message.headers["jobhandle"]["id"])
        return ids

    def statuses(self) -> list[JobStatus]:
        return [job.status for job in reversed(self.jobs.find())]

    def close(self) -> None:
        self.jobs.close()
        self.engine.dispose()


def engine_of(database_url: str) -> Engine:
    engine = sqlalchemy.create_engine(database_url)
    if engine.dialect.name == "sqlite":
        # SQLAlchemy's documented recipe for savepoints on SQLite.
        event.listen(engine, "connect", _leave_transactions_to_us)
        event.listen(engine, "begin", _begin)
    return engine


def _leave_transactions_to_us(connection: Any, _record: Any) -> None:
    connection.isolation_level = None


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")
