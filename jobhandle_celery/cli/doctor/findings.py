"""What a check is, what it finds, and what it may look at. May import desk and below."""

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
from ..context import Desk
from ..deadline import Question, Silent
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
"""The seven, in a few words each."""

ASKED_FOR = 1.5
"""Seconds that workers have to answer Celery's `inspect`."""

AT_MOST = 6.0
"""Seconds that a server, or a check, has to answer."""

IN_ALL = 7.5
"""Seconds for all checks together, whatever is silent."""


class Level(StrEnum):
    """How bad it is."""

    OK = "OK"
    WARN = "WARN"
    """Every promise holds, and something is slower, riskier or blinder than it need be."""
    BAD = "BAD"
    """A promise is broken, or will be."""
    UNKNOWN = "UNKNOWN"
    """The check could not be made."""


@dataclass(frozen=True)
class Finding:
    """What one check found: a sentence, and what to set or do about it."""

    level: Level
    says: str
    set: str = ""


def ok(says: str, set: str = "") -> Finding:
    """Return a finding that all is well."""
    return Finding(Level.OK, says, set)


def warn(says: str, set: str) -> Finding:
    """Return a finding that breaks no promise."""
    return Finding(Level.WARN, says, set)


def bad(says: str, set: str) -> Finding:
    """Return a finding that breaks one."""
    return Finding(Level.BAD, says, set)


def unknown(says: str, set: str = "") -> Finding:
    """Return that a check could not be made, and why."""
    return Finding(Level.UNKNOWN, says, set)


class Patient:
    """What the checks look at; each thing is asked for once, and nothing is waited for without a bound."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.app: Any = desk.app
        self.conf: Any = desk.app.conf
        self._until = time.monotonic() + IN_ALL
        self._questions: dict[str, Question[Any]] = {}

    def begin(self) -> None:
        """Ask all servers at the same time: several may be silent."""
        for name, ask in (
            ("database", self._ask_database),
            ("broker", self._ask_broker),
            ("backend", self._ask_backend),
            ("answers", self._ask_workers),
        ):
            self._questions[name] = Question(ask)
        _ = self.database, self.broker, self.backend  # kept, so that no check waits for them again

    def within(self, ask: Callable[[], T]) -> T:
        """Return what asking returns.

        Raises:
            Silent: it takes too long.
        """
        return self._answer(Question(ask))

    def _asked(self, name: str, ask: Callable[[], T]) -> T:
        question: Question[T] = self._questions.get(name) or Question(ask)
        return self._answer(question)

    def _answer(self, question: Question[T]) -> T:
        return question.answer(min(AT_MOST, max(self._until - time.monotonic(), 0.1)))

    @property
    def store(self) -> Store:
        """The store of the app."""
        return self.desk.runtime.store

    @property
    def settings(self) -> Settings:
        """The settings of the app's jobs."""
        return self.desk.runtime.settings

    @cached_property
    def database(self) -> float | JobHandleError:
        """How many seconds the database takes to answer, or why it does not."""
        try:
            return self._asked("database", self._ask_database)
        except JobHandleError as error:
            return error
        except Silent as error:
            return DatabaseUnavailableError(f"the database did not answer: {error}")

    def _ask_database(self) -> float:
        self.store.now()
        times = []
        for _ in range(3):
            start = time.monotonic()
            self.store.now()
            times.append(time.monotonic() - start)
        return min(times)

    @cached_property
    def broker(self) -> float | str:
        """How many seconds the broker takes to answer, or why it does not."""
        try:
            return self._asked("broker", self._ask_broker)
        except Silent as error:
            return str(error)
        except Exception as error:  # also of a URL that names no transport; each has errors of its own
            return one_line(f"{type(error).__name__}: {error}")

    def _ask_broker(self) -> float:
        connection = self.connection
        start = time.monotonic()
        connection.channel().close()
        return time.monotonic() - start

    @cached_property
    def backend(self) -> str | None:
        """Why the result backend does not answer; None if it does."""
        try:
            self._asked("backend", self._ask_backend)
        except Silent as error:
            return str(error)
        except Exception as error:  # of whatever driver it has
            return one_line(f"{type(error).__name__}: {error}")
        return None

    def _ask_backend(self) -> None:
        if self.conf.result_backend:
            self.app.backend.get_task_meta("jobhandle-doctor", cache=False)

    @cached_property
    def connection(self) -> Any:
        """A connection to the broker."""
        connection, once = bounded(self.app)
        return connection.ensure_connection(**once)

    @cached_property
    def driver(self) -> str:
        """The kind of broker: redis, amqp, filesystem, …"""
        return driver_of(self.app)

    @cached_property
    def options(self) -> Mapping[str, Any]:
        """The configuration's ``broker_transport_options``."""
        return dict(self.conf.broker_transport_options or {})

    @cached_property
    def answers(self) -> Mapping[str, Mapping[str, Any]]:
        """What the workers say when they are asked: by question, by name of the worker."""
        return self._asked("answers", self._ask_workers)

    def _ask_workers(self) -> Mapping[str, Mapping[str, Any]]:
        connection, once = bounded(self.app)
        asked: dict[str, Any] = {"timeout": ASKED_FOR, "connection": connection.ensure_connection(**once)}
        tasks = self.app.control.inspect(**asked).registered() or {}
        if not tasks:
            return {"tasks": {}, "queues": {}, "faults": {}}
        # Those that have answered are asked by name: no time passes waiting for others.
        asked |= {"destination": list(tasks), "limit": len(tasks)}
        queues = self.app.control.inspect(**asked).active_queues() or {}
        replies = self.app.control.broadcast(internal_errors.COMMAND, reply=True, **asked) or []
        connection.release()
        told = {name: fault for reply in replies for name, fault in reply.items() if "count" in fault}
        return {"tasks": tasks, "queues": queues, "faults": told}

    @cached_property
    def workers(self) -> list[WorkerSeen]:
        """The workers that have a row."""
        return self.store.workers()

    @cached_property
    def late_acks(self) -> list[str]:
        """The names of the tasks that acknowledge late, in this app's own words."""
        return [name for name, task in sorted(self.app.tasks.items()) if task.acks_late]

    def close(self) -> None:
        """Let go of the broker; the end of the process does it, if the broker is silent."""
        if "connection" in vars(self):
            with suppress(Silent):
                Question(self.connection.release).answer(1)


@dataclass(frozen=True)
class Check:
    """One row of the table of checks."""

    name: str
    promises: tuple[int, ...]
    look: Callable[[Patient], Iterable[Finding] | Finding]
    needs: tuple[str, ...] = ()
    """What must answer first: the database, the broker."""

    def findings(self, patient: Patient) -> list[Finding]:
        """Make the check; one that cannot be made says so."""
        if "database" in self.needs and isinstance(patient.database, Exception):
            return [unknown("not looked at before the database answers and its tables fit")]
        if "broker" in self.needs and isinstance(patient.broker, str):
            return [unknown("not looked at before the broker answers")]

        def look() -> list[Finding]:
            found = self.look(patient)
            return [found] if isinstance(found, Finding) else list(found)

        try:
            return patient.within(look)
        except Silent as error:
            asked = " and ".join(self.needs) or "what it asks"
            return [unknown(f"this check could not be made: {error}", f"see why {asked} is silent")]
        except Exception as error:  # whatever it is, it must not hide what the other checks find
            if internal_errors.is_bug(error):
                internal_errors.report(f"the check {self.name}", error, "the other checks go on")
            return [unknown(f"this check failed: {type(error).__name__}: {error}")]
