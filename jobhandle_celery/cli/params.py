"""Click parameter types: durations, times, JSON, statuses, task names.

The error of each type names the accepted forms; statuses and task names complete in the shell.
"""

import json
import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import click
from celery.app.utils import find_app
from click.shell_completion import CompletionItem

from ..status import JobStatus

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
    Choice = click.Choice[str]
else:  # not generic in older Clicks
    ParamType = click.ParamType
    Choice = click.Choice

_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)([wdhms])")
_SECONDS = {"w": 604800, "d": 86400, "h": 3600, "m": 60, "s": 1}


class DurationType(ParamType):
    """A duration with units."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Parse it; a number without a unit is ambiguous, and refused."""
        if isinstance(value, timedelta):
            return value
        if not re.fullmatch(rf"(?:{_PART.pattern})+", value):
            self.fail(f"{value!r} is not a duration; accepted: 30d, 90m, 1h30m, 45s", param, ctx)
        try:
            return timedelta(seconds=sum(float(n) * _SECONDS[unit] for n, unit in _PART.findall(value)))
        except OverflowError:
            self.fail(f"{value!r} is too long", param, ctx)


class TimeType(ParamType):
    """A time, or a duration from now."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime | timedelta:
        """Parse it; a time without a zone is in this machine's."""
        if isinstance(value, (datetime, timedelta)):
            return value
        if value.startswith("+"):
            return DURATION.convert(value[1:], param, ctx)
        try:
            return datetime.fromisoformat(value).astimezone()
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a time; accepted: ISO 8601 (2030-01-31T18:00Z), or +10m", param, ctx)


class PastTimeType(ParamType):
    """A time, or a duration before now."""

    name = "age or time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime | timedelta:
        """Parse it; a time without a zone is in this machine's."""
        if isinstance(value, str) and re.match(r"\d{4}-", value):
            return TIME.convert(value, param, ctx)
        return DURATION.convert(value, param, ctx)


class JsonType(ParamType):
    """A JSON document of one Python type."""

    def __init__(self, accepted: type, name: str) -> None:
        self._accepted = accepted
        self.name = f"JSON {name}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value of JSON text, if it is of the accepted type."""
        if isinstance(value, self._accepted):
            return value
        try:
            parsed = json.loads(value, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            self.fail(f"not JSON: {error}", param, ctx)
        if not isinstance(parsed, self._accepted):
            self.fail(f"a {self.name} is needed, this is {type(parsed).__name__}", param, ctx)
        return parsed


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


class TaskNameType(ParamType):
    """The name of a task."""

    name = "task"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the tasks of the app that ``-A`` names."""
        app_name = ctx.find_root().params.get("app")
        try:
            app: Any = find_app(app_name) if isinstance(app_name, str) else app_name
            app.loader.import_default_modules()
            names = sorted(name for name in app.tasks if not name.startswith("celery."))
        except Exception:  # whatever importing the app raises must not appear in the command line
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class StatusType(Choice):
    """A job status, in any case."""

    name = "status"

    def __init__(self, *statuses: JobStatus) -> None:
        super().__init__([status.value for status in statuses or tuple(JobStatus)], case_sensitive=False)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return STATUS; the help text lists the statuses."""
        return "STATUS"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the statuses in their own spelling, whatever the case of the input."""
        return [CompletionItem(word) for word in self.choices if word.lower().startswith(incomplete.lower())]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> JobStatus:
        """Return the status."""
        matches = [word for word in self.choices if word.lower() == str(value).lower()]
        if not matches:
            self.fail(f"{value!r} is not accepted here; accepted: {', '.join(self.choices)}", param, ctx)
        return JobStatus(matches[0])


DURATION = DurationType()
TIME = TimeType()
PAST_TIME = PastTimeType()
JSON_LIST = JsonType(list, "list")
JSON_OBJECT = JsonType(dict, "object")
TASK = TaskNameType()
JOB_ID = click.IntRange(1, 2**63 - 1)
JOB_ID.name = "job id"
