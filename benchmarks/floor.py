"""The least that a durable submit does: one row, one commit, one message."""

import uuid
from typing import Any

from celery import Celery
from sqlalchemy import Engine, create_engine, func, insert, select

from jobhandle_celery import schema
from jobhandle_celery.status import JobStatus

from .peers import Place
from .peers.celery_app import TASK

FLOOR, INSERT, PUBLISH = "the floor: INSERT + COMMIT, publish", "INSERT + COMMIT alone", "publish alone"
FLOORS = {FLOOR: "both", INSERT: "insert", PUBLISH: "publish"}
"""What is measured, and the method that does it."""


class Floor:
    """The least that a durable submit does."""

    def __init__(self, place: Place) -> None:
        engine: Engine = create_engine(place.database_url)
        with engine.begin() as connection:
            connection.execute(select(func.pg_advisory_xact_lock(1)))  # other floors begin, too
            schema.metadata.create_all(connection)
        self._connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._app = Celery("floor", broker=place.broker_url, set_as_current=False)
        self._broker = self._app.connection_for_write()
        self._producer: Any = self._app.amqp.Producer(self._broker, auto_declare=False)
        self._statement = insert(schema.job).values(
            submitted=schema.clock(), due_at=schema.clock(), kwargs="{}", routing="{}", message=""
        )
        self._ids = 0
        self._ours = uuid.uuid4().hex[:8]  # other processes insert into this table, too

    def insert(self, number: int) -> None:
        """Insert a row, and commit."""
        self._ids += 1
        row = {
            "namespace": "floor",
            "task": TASK,
            "task_id": f"{self._ours}-0000-4000-8000-{self._ids:012d}",
            "args": f"[{number}]",
            "queue": "celery",
            "max_attempts": 1,
            "attempt": 0,
            "status_id": JobStatus.SUBMITTED,
        }
        self._connection.execute(self._statement, row)

    def publish(self, number: int) -> None:
        """Build a message and publish it."""
        message = self._app.amqp.as_task_v2(f"{number}", TASK, (number,), {})
        self._app.amqp.send_task_message(self._producer, TASK, message, queue=self._app.amqp.queues["celery"])

    def both(self, number: int) -> None:
        """Do both."""
        self.insert(number)
        self.publish(number)
