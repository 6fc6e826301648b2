"""A lower bound of a durable submit: one row, one commit, one message."""

import uuid
from typing import Any

from celery import Celery
from sqlalchemy import Engine, create_engine, func, insert, select

from jobhandle_celery import schema
from jobhandle_celery.status import JobStatus

from .peers import Sandbox
from .peers.celery_app import TASK

FLOOR, INSERT, PUBLISH = "the floor: INSERT + COMMIT, publish", "INSERT + COMMIT alone", "publish alone"
FLOORS = {FLOOR: "both", INSERT: "insert", PUBLISH: "publish"}
"""The label of each measurement, and the method of `Floor`."""


class Floor:
    """Inserts a row and publishes a message, with SQLAlchemy Core and Celery's producer."""

    def __init__(self, sandbox: Sandbox) -> None:
        engine: Engine = create_engine(sandbox.database_url)
        with engine.begin() as connection:
            connection.execute(select(func.pg_advisory_xact_lock(1)))  # other processes create them, too
            schema.metadata.create_all(connection)
        self._connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._app = Celery("floor", broker=sandbox.broker_url, set_as_current=False)
        self._broker = self._app.connection_for_write()
        self._producer: Any = self._app.amqp.Producer(self._broker, auto_declare=False)
        self._statement = insert(schema.job).values(
            submitted=schema.clock(), due_at=schema.clock(), kwargs="{}", routing="{}", message=""
        )
        self._ids = 0
        self._prefix = uuid.uuid4().hex[:8]  # other processes insert into this table, too

    def insert(self, number: int) -> None:
        """Insert a row and commit."""
        self._ids += 1
        row = {
            "namespace": "floor",
            "task": TASK,
            "task_id": f"{self._prefix}-0000-4000-8000-{self._ids:012d}",
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
        """Insert a row, commit, then publish a message."""
        self.insert(number)
        self.publish(number)
