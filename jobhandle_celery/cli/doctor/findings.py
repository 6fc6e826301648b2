"""What a check is, what it returns, and the deployment that it inspects."""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, TypeVar

from ... import internal_errors
from ...broker.connection import bounded, driver_of
from ...errors import DatabaseUnavailableError, JobHandleError
from ...settings import Settings
from ...store import Store, WorkerSeen
from ..context import CommandContext
from ..deadline import BackgroundCall, NoAnswerError
from ..formatting import one_line

T = TypeVar("T")

PROMISES = {
    1: "not lost",
    2: "not started once cancelled",
    3: "not twice at once",
    4: "not running for ever",
    5: "not before its time",
    6: "no write from the past",
    7: "not started without the database",
}
"""The promises of the library, shortened."""

INSPECT_TIMEOUT = 1.5
"""Seconds for workers to answer Celery's `inspect`."""

CALL_TIMEOUT = 6.0
"""Seconds for a server to answer, and for a check."""

TOTAL_TIMEOUT = 7.5
"""Seconds for all checks together."""


class Level(StrEnum):
    """The level of a finding."""

    OK = "OK"
    WARN = "WARN"
    """Every promise holds; something is slower, riskier or less visible than necessary."""
    BAD = "BAD"
    """A promise is broken, or will be."""
    UNKNOWN = "UNKNOWN"
    """The check could not be made."""


@dataclass(frozen=True)
class Finding:
    """The result of a check, and the next step."""

    level: Level
    message: str
    next_step: str = ""


def ok(message: str, next_step: str = "") -> Finding:
    """Return a finding without a problem."""
    return Finding(Level.OK, message, next_step)


def warn(message: str, next_step: str) -> Finding:
    """Return a problem that breaks no promise."""
    return Finding(Level.WARN, message, next_step)


def bad(message: str, next_step: str) -> Finding:
    """Return a problem that breaks a promise."""
    return Finding(Level.BAD, message, next_step)


def unknown(message: str, next_step: str = "") -> Finding:
    """Return that a check could not be made."""
    return Finding(Level.UNKNOWN, message, next_step)


class Deployment:
    """The app, its servers and its workers. Each is asked once, and with a timeout."""

    def __init__(self, context: CommandContext) -> None:
        self.context = context
        self.app: Any = context.app
        self.conf: Any = context.app.conf
        self._deadline = time.monotonic() + TOTAL_TIMEOUT
        self._calls: dict[str, BackgroundCall[Any]] = {}

    def connect(self) -> None:
        """Ask all servers at the same time: several may not answer."""
        self._calls = {
            "database": BackgroundCall(self._ask_database),
            "broker": BackgroundCall(self._ask_broker),
            "backend": BackgroundCall(self._ask_backend),
            "answers": BackgroundCall(self._ask_workers),
        }
        _ = self.database, self.broker, self.backend  # cached: no check waits for them again

    def call(self, function: Callable[[], T]) -> T:
        """Return the result of a function.

        Raises:
            NoAnswerError: it did not return in time.
        """
        return self._result(BackgroundCall(function))

    def _call_once(self, name: str, function: Callable[[], T]) -> T:
        call: BackgroundCall[T] = self._calls.get(name) or BackgroundCall(function)
        return self._result(call)

    def _result(self, call: BackgroundCall[T]) -> T:
        return call.result(min(CALL_TIMEOUT, max(self._deadline - time.monotonic(), 0.1)))

    @property
    def store(self) -> Store:
        """The app's store."""
        return self.context.runtime.store

    @property
    def settings(self) -> Settings:
        """The settings of the app's jobs."""
        return self.context.runtime.settings

    @cached_property
    def database(self) -> float | JobHandleError:
        """Seconds for a round trip to the database, or its error."""
        try:
            return self._call_once("database", self._ask_database)
        except JobHandleError as error:
            return error
        except NoAnswerError as error:
            return DatabaseUnavailableError(f"the database did not answer: {error}")

    def _ask_database(self) -> float:
        self.store.stats.now()
        times = []
        for _ in range(3):
            start = time.monotonic()
            self.store.stats.now()
            times.append(time.monotonic() - start)
        return min(times)

    @cached_property
    def broker(self) -> float | str:
        """Seconds for a round trip to the broker, or its error."""
        try:
            return self._call_once("broker", self._ask_broker)
        except NoAnswerError as error:
            return str(error)
        except Exception as error:  # every driver has its own classes; a wrong URL has others
            return one_line(f"{type(error).__name__}: {error}")

    def _ask_broker(self) -> float:
        connection = self.connection
        start = time.monotonic()
        connection.channel().close()
        return time.monotonic() - start

    @cached_property
    def backend(self) -> str | None:
        """The error of the result backend; None if it answers."""
        try:
            self._call_once("backend", self._ask_backend)
        except NoAnswerError as error:
            return str(error)
        except Exception as error:  # every driver has its own classes
            return one_line(f"{type(error).__name__}: {error}")
        return None

    def _ask_backend(self) -> None:
        if self.conf.result_backend:
            self.app.backend.get_task_meta("jobhandle-doctor", cache=False)

    @cached_property
    def connection(self) -> Any:
        """A connection to the broker."""
        connection, retry_policy = bounded(self.app)
        return connection.ensure_connection(**retry_policy)

    @cached_property
    def driver(self) -> str:
        """The kind of broker: redis, amqp, filesystem, …"""
        return driver_of(self.app)

    @cached_property
    def transport_options(self) -> Mapping[str, Any]:
        """The configuration's ``broker_transport_options``."""
        return dict(self.conf.broker_transport_options or {})

    @cached_property
    def answers(self) -> Mapping[str, Mapping[str, Any]]:
        """The workers' answers to Celery's `inspect`: tasks, queues, internal errors, by worker name."""
        return self._call_once("answers", self._ask_workers)

    def _ask_workers(self) -> Mapping[str, Mapping[str, Any]]:
        connection, retry_policy = bounded(self.app)
        options: dict[str, Any] = {
            "timeout": INSPECT_TIMEOUT,
            "connection": connection.ensure_connection(**retry_policy),
        }
        tasks = self.app.control.inspect(**options).registered() or {}
        if not tasks:
            return {"tasks": {}, "queues": {}, "errors": {}}
        # With the number of answers known, the next calls do not wait for the whole timeout.
        options |= {"destination": list(tasks), "limit": len(tasks)}
        queues = self.app.control.inspect(**options).active_queues() or {}
        replies = self.app.control.broadcast(internal_errors.COMMAND, reply=True, **options) or []
        connection.release()
        errors = {name: answer for reply in replies for name, answer in reply.items() if "count" in answer}
        return {"tasks": tasks, "queues": queues, "errors": errors}

    @cached_property
    def workers(self) -> list[WorkerSeen]:
        """The workers that have a row."""
        return self.store.stats.workers()

    @cached_property
    def late_ack_tasks(self) -> list[str]:
        """The names of the app's tasks with ``acks_late``."""
        return [name for name, task in sorted(self.app.tasks.items()) if task.acks_late]

    def close(self) -> None:
        """Close the connection to the broker, unless the broker does not answer."""
        if "connection" in vars(self):
            with suppress(NoAnswerError):
                BackgroundCall(self.connection.release).result(1)


@dataclass(frozen=True)
class Check:
    """A named check of a deployment, and the promises that depend on it."""

    name: str
    promises: tuple[int, ...]
    function: Callable[[Deployment], Iterable[Finding] | Finding]
    needs: tuple[str, ...] = ()
    """The servers that must answer first: database, broker."""

    def run(self, deployment: Deployment) -> list[Finding]:
        """Return the findings; if the check fails, one finding with the reason."""
        if "database" in self.needs and isinstance(deployment.database, Exception):
            return [unknown("skipped: needs the database and its tables", "see database and schema")]
        if "broker" in self.needs and isinstance(deployment.broker, str):
            return [unknown("skipped: needs the broker", "see broker")]

        def findings() -> list[Finding]:
            found = self.function(deployment)
            return [found] if isinstance(found, Finding) else list(found)

        try:
            return deployment.call(findings)
        except NoAnswerError as error:
            server = " and ".join(self.needs) or "the server that it asks"
            return [unknown(f"the check did not end: {error}", f"find out why {server} does not answer")]
        except Exception as error:  # one failing check must not hide the findings of the others
            if internal_errors.is_bug(error):
                internal_errors.report(f"the check {self.name}", error, "the other checks go on")
            return [unknown(f"the check failed: {type(error).__name__}: {error}")]
