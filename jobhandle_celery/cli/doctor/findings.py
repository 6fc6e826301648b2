"""What a check is, what it finds, and what it may look at. May import desk and below."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from ...errors import JobHandleError
from ...settings import Settings
from ...store import Store, WorkerSeen
from ..desk import Desk
from ..line import bounded
from ..words import one_line

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
    """What the checks look at; each thing is asked for once."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.app: Any = desk.app
        self.conf: Any = desk.app.conf

    @property
    def store(self) -> Store:
        """The store of the app."""
        return self.desk.store

    @property
    def settings(self) -> Settings:
        """The settings of the app's jobs."""
        return self.desk.service.settings

    @cached_property
    def database(self) -> float | JobHandleError:
        """How many seconds the database takes to answer, or why it does not."""
        try:
            self.store.now()
            times = []
            for _ in range(3):
                start = time.monotonic()
                self.store.now()
                times.append(time.monotonic() - start)
            return min(times)
        except JobHandleError as error:
            return error

    @cached_property
    def broker(self) -> float | str:
        """How many seconds the broker takes to answer, or why it does not."""
        try:
            start = time.monotonic()
            self.connection.channel().close()
            return time.monotonic() - start
        except Exception as error:  # also of a URL that names no transport; each has errors of its own
            return one_line(f"{type(error).__name__}: {error}")

    @cached_property
    def connection(self) -> Any:
        """A connection to the broker that gives up in bounded time."""
        return bounded(self.app)

    @cached_property
    def driver(self) -> str:
        """The kind of broker: redis, amqp, filesystem, …"""
        return str(self.app.connection_for_write().transport.driver_type)

    @cached_property
    def options(self) -> Mapping[str, Any]:
        """The configuration's ``broker_transport_options``."""
        return dict(self.conf.broker_transport_options or {})

    @cached_property
    def answers(self) -> Mapping[str, Mapping[str, Any]]:
        """What the workers say when they are asked: by question, by name of the worker."""
        inspect = self.app.control.inspect(timeout=ASKED_FOR, connection=self.connection)
        tasks = inspect.registered() or {}
        return {"tasks": tasks, "queues": (inspect.active_queues() or {}) if tasks else {}}

    @cached_property
    def workers(self) -> list[WorkerSeen]:
        """The workers that have a row."""
        return self.store.workers()

    @cached_property
    def late_acks(self) -> list[str]:
        """The names of the tasks that acknowledge late, in this app's own words."""
        return [name for name, task in sorted(self.app.tasks.items()) if task.acks_late]

    def close(self) -> None:
        """Let go of the broker."""
        if "connection" in vars(self):
            self.connection.release()


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
        try:
            found = self.look(patient)
            return [found] if isinstance(found, Finding) else list(found)
        except Exception as error:  # whatever it is, it must not hide what the other checks find
            return [unknown(f"this check failed: {type(error).__name__}: {error}")]
