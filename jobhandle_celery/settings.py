"""The settings, read once from Celery's configuration: ``app.conf.jobhandle_lease = 30``."""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

from .errors import ConfigurationError, shown
from .validation import duration

REPUBLISH_LIMIT = timedelta(minutes=15)
"""At which the doubling of ``jobhandle_republish_after`` stops."""

MAX_DURATION = timedelta(days=366)


@dataclass(frozen=True)
class Settings:
    """The settings of one app. Durations are measured by the database's clock."""

    lease: timedelta = timedelta(seconds=60)
    """A worker that has not renewed its lease for this long is lost."""
    sweep_interval: timedelta = timedelta(seconds=1)
    """The shortest time between two passes, however many workers there are."""
    republish_after: timedelta = timedelta(seconds=60)
    """A Queued job is published again after this time, which doubles with each publish."""
    publish_grace: timedelta = timedelta(seconds=5)
    """How long the sweeper leaves a job to the process that is publishing it."""
    namespace: str = "default"
    """Services with different brokers need different namespaces in a shared database."""
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
        """The sweep interval, at most half of `unbroken`: else each pass would seem to follow an outage."""
        return min(self.sweep_interval, self.unbroken / 2)

    @property
    def renewal_deadline(self) -> timedelta:
        """How long one renewal of a lease may take: a sixth of the lease, but at least a second."""
        return max(self.lease / 6, timedelta(seconds=1))

    def republish_delay(self, publish_count: int) -> timedelta:
        """Return the time from that publish (1: the first) to the next."""
        doublings = min(max(publish_count - 1, 0), 20)
        wait: timedelta = self.republish_after * 2**doublings
        return min(wait, max(REPUBLISH_LIMIT, self.republish_after))


def read(get: Callable[[str], Any]) -> Settings:
    """Read the settings through a getter of configuration keys, which returns None for a missing one.

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
    if given is None or not timedelta(0) < given <= MAX_DURATION:
        raise ConfigurationError(f"{key}: {shown(value)}; accepted: seconds or a timedelta, up to a year")
    return given


_PREFIX = "jobhandle_"
NAMES = {"database_url", "durable", *(field.name for field in fields(Settings))}
"""All settings, without their prefix."""


def ignored(given: Iterable[str]) -> dict[str, str | None]:
    """Return those keys of a configuration that look like settings and are not read, each with the nearest.

    Keys of an application's own may begin in the same way.
    """
    found: dict[str, str | None] = {}
    for key in given:
        whole = key.lower().removeprefix("celery_") if key.startswith("CELERY_") else key
        name = whole.removeprefix(_PREFIX)
        if name != whole and name not in NAMES:
            nearest = difflib.get_close_matches(name, NAMES, 1)
            found[key] = f"{_PREFIX}{nearest[0]}" if nearest else None
    return found
