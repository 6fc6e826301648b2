"""Engines: what the caller gives as a database is checked, and an engine of our own is made for it."""

import functools
from collections.abc import Callable
from typing import Any

from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from ..errors import ConfigurationError, shown
from .connections import CONNECT_TIMEOUT, OWN_PSYCOPG_ENGINE, listen_to_psycopg
from .db_errors import without_secrets

BUSY_TIMEOUT = 10.0
"""Seconds for which SQLite waits for the write of another process."""


def engine_maker(database: object) -> Callable[[], Engine]:
    """Return a function that makes an engine for a database; each process calls it once.

    Raises:
        ConfigurationError: the URL cannot be read, or its driver is not installed.
    """
    if callable(database):
        return database
    if not isinstance(database, (str, URL)):
        raise ConfigurationError(
            f"database: {shown(database)} is not a URL or a function. {accepted_instead(database)}"
        )
    try:
        url = make_url(database)
        if url.get_backend_name() == "postgresql" and url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        dialect = url.get_dialect()
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        refused = without_secrets(database) if isinstance(database, URL) else "the text given"
        raise ConfigurationError(
            f"Not a database URL: {refused} ({type(error).__name__}). Accepted: {_URLS}."
        ) from None
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise ConfigurationError(
            "An in-memory SQLite database is gone with its connection, and no worker would see it. "
            "Name a file: 'sqlite:///path/to/file.db'."
        )

    if dialect.is_async:
        raise ConfigurationError(
            f"{url.drivername} is an asynchronous driver; accepted: a synchronous one, "
            "e.g. postgresql+psycopg:// (an AsyncSession joins by its run_sync)."
        )
    try:
        dialect.import_dbapi()
    except ModuleNotFoundError as error:
        hint = "'jobhandle-celery[postgresql]'" if url.get_backend_name() == "postgresql" else error.name
        raise ConfigurationError(
            f"The driver of {url.drivername} is not installed ({error.name}): pip install {hint}."
        ) from None
    return functools.partial(own_engine, url)


_URLS = "e.g. 'postgresql+psycopg://user@host/name' or 'sqlite:///path/to/file.db'"


def accepted_instead(value: object) -> str:
    """Return what to pass instead of a value that is not a database."""
    if type(value).__module__.startswith("sqlalchemy.ext.asyncio"):
        return "Give the URL of a synchronous driver, or a function that makes an Engine by create_engine()."
    return (
        f"Accepted: a URL, {_URLS}; or a function that makes a new Engine for this library alone, "
        "e.g. Jobs(app, lambda: create_engine(url)). Your own engine joins by submit(session=...)."
    )


def own_engine(url: URL) -> Engine:
    """Make an engine that only this library uses."""
    psycopg = url.drivername == "postgresql+psycopg"
    options = {OWN_PSYCOPG_ENGINE: True} if psycopg else {}
    engine = create_engine(url, connect_args=_connect_args(url), execution_options=options)
    if psycopg:
        listen_to_psycopg(engine, url.query)
    return engine


def _connect_args(url: URL) -> dict[str, Any]:
    if url.drivername == "postgresql+psycopg":
        defaults: dict[str, Any] = {
            "connect_timeout": CONNECT_TIMEOUT,
            # A peer that has vanished is noticed in seconds, not after the kernel's quarter of an hour.
            "tcp_user_timeout": CONNECT_TIMEOUT * 1000,
            "keepalives_idle": CONNECT_TIMEOUT,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            # Until it is known whether PgBouncer is between, see `_on_psycopg_connect`.
            "prepare_threshold": None,
        }
        # The encoding is set regardless of the URL: what is read must be what was written.
        return {key: value for key, value in defaults.items() if key not in url.query} | {
            "client_encoding": "utf8"
        }
    if url.get_backend_name() == "sqlite":
        return {"timeout": BUSY_TIMEOUT}
    if url.get_backend_name() in ("mysql", "mariadb"):
        return {"connect_timeout": CONNECT_TIMEOUT, "charset": "utf8mb4"}
    return {}
