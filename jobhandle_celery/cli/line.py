"""A connection to the broker that gives up in bounded time, for commands. Imports nothing of ours."""

from typing import Any

BOUND = 5.0
"""Seconds to reach the broker, and for its answer."""


def bounded(app: Any) -> Any:
    """Return a connection that is open.

    Raises:
        kombu.exceptions.OperationalError: the broker does not answer.
    """
    options: dict[str, Any] = {}
    if app.connection_for_write().transport.driver_type == "redis":
        options = {"socket_connect_timeout": BOUND, "socket_timeout": BOUND}
    connection = app.connection_for_write(connect_timeout=BOUND, transport_options=options)
    # One try for each broker of a list, and a second one for a lonely one.
    tries = max(len(connection.alt), 1)
    connection.ensure_connection(max_retries=tries, interval_start=0, timeout=BOUND * tries)
    return connection
