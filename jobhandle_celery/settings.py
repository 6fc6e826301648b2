"""The settings, read once from Celery's configuration. May import errors.

The keys are Celery configuration keys (``app.conf.jobhandle_lease = 30``); durations are seconds or
`timedelta`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from .errors import ConfigurationError, shown
from .validation import duration

REPUBLISH_LIMIT = timedelta(minutes=15)
"""How long the doubling of the patience goes on."""

LONGEST = timedelta(days=366)


@dataclass(frozen=True)
class Settings:
    """How long things may take. All durations are those of the database's clock."""

    lease: timedelta = timedelta(seconds=60)
    """A worker that has not renewed for this long is taken for lost."""
    sweep_interval: timedelta = timedelta(seconds=1)
    """At most one pass of the sweep in this time, however many workers there are."""
    republish_after: timedelta = timedelta(seconds=60)
    """How long a message may take before it is asked after; doubles each time."""
    publish_grace: timedelta = timedelta(seconds=5)
    """How long the sweep leaves a row alone that someone is just publishing."""
    namespace: str = "default"
    """Services with different brokers that share a database have different namespaces."""
    schema: str | None = None
    """The database schema of the tables; None: the connection's default."""

    progress_events: bool = True
    """Whether workers send ``task-progress``, an event that Celery does not have."""
    fast_publish: bool = True
    """Whether messages to Redis and RabbitMQ bypass kombu's producer where they can."""

    @property
    def unbroken(self) -> timedelta:
        """The longest gap between two passes that does not count as an outage of the database."""
        return self.lease / 6

    @property
    def pass_interval(self) -> timedelta:
        """The interval in force: half of `unbroken` at most, or every pass would seem to end an outage."""
        return min(self.sweep_interval, self.unbroken / 2)

    @property
    def renewal_deadline(self) -> timedelta:
        """How long one renewal of a lease may take; leases shorter than some seconds leave it a second."""
        return max(self.lease / 6, timedelta(seconds=1))

    def republish_delay(self, publish_count: int) -> timedelta:
        """Return how long to wait after that many publishes (1: the first)."""
        doublings = min(max(publish_count - 1, 0), 20)
        wait: timedelta = self.republish_after * 2**doublings
        return min(wait, max(REPUBLISH_LIMIT, self.republish_after))


def read(get: Callable[[str], Any]) -> Settings:
    """Read the settings through a getter of configuration keys that returns None for what is not set.

    Raises:
        ConfigurationError: a value is not a positive duration, or a name is malformed.
    """
    given: dict[str, Any] = {}
    for name in ("lease", "sweep_interval", "republish_after", "publish_grace"):
        value = get(f"jobhandle_{name}")
        if value is not None:
            given[name] = _duration(f"jobhandle_{name}", value)
    for name in ("namespace", "schema"):
        value = get(f"jobhandle_{name}")
        if value is not None:
            if not isinstance(value, str) or not 0 < len(value) <= 63:
                raise ConfigurationError(f"jobhandle_{name}: {shown(value)}; accepted: 1 to 63 characters")
            given[name] = value
    for name in ("progress_events", "fast_publish"):
        value = get(f"jobhandle_{name}")
        if value is not None:
            if not isinstance(value, bool):
                raise ConfigurationError(f"jobhandle_{name}: {shown(value)}; accepted: True or False")
            given[name] = value
    return Settings(**given)


def _duration(key: str, value: Any) -> timedelta:
    given = duration(value)
    if given is None or not timedelta(0) < given <= LONGEST:
        raise ConfigurationError(f"{key}: {shown(value)}; accepted: seconds or a timedelta, up to a year")
    return given
