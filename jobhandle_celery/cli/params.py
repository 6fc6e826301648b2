"""What may be typed: durations, moments, JSON, statuses, tasks. May import status.

Each kind says in one sentence what it accepts, and completes what it can.
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
    Kind = click.ParamType[Any]
    Choice = click.Choice[str]
else:  # older Clicks have no brackets here
    Kind = click.ParamType
    Choice = click.Choice

_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)([wdhms])")
_SECONDS = {"w": 604800, "d": 86400, "h": 3600, "m": 60, "s": 1}


class Duration(Kind):
    """A length of time."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read it. A number without a unit is refused: 30 of what?"""
        if isinstance(value, timedelta):
            return value
        if not re.fullmatch(rf"(?:{_PART.pattern})+", value):
            self.fail(f"{value!r} is no duration; accepted: 30d, 90m, 1h30m, 45s", param, ctx)
        try:
            return timedelta(seconds=sum(float(n) * _SECONDS[unit] for n, unit in _PART.findall(value)))
        except OverflowError:
            self.fail(f"{value!r} is too long", param, ctx)


class Moment(Kind):
    """A point in time, or how far off it is."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime | timedelta:
        """Read it; without a zone it is in this machine's."""
        if isinstance(value, (datetime, timedelta)):
            return value
        if value.startswith("+"):
            return DURATION.convert(value[1:], param, ctx)
        try:
            return datetime.fromisoformat(value).astimezone()
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time; accepted: ISO 8601 (2030-01-31T18:00Z), or +10m", param, ctx)


class JsonOf(Kind):
    """A JSON document of one kind."""

    def __init__(self, kind: type, word: str) -> None:
        self._kind = kind
        self.name = f"JSON {word}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it."""
        if isinstance(value, self._kind):
            return value
        try:
            read = json.loads(value, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            self.fail(f"not JSON: {error}", param, ctx)
        if not isinstance(read, self._kind):
            self.fail(f"a {self.name} is needed, this is {type(read).__name__}", param, ctx)
        return read


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


class TaskName(Kind):
    """The name of a task; the shell completes those of the app."""

    name = "task"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the tasks of the app that ``-A`` names."""
        named = ctx.find_root().params.get("app")
        try:
            app: Any = find_app(named) if isinstance(named, str) else named
            app.loader.import_default_modules()
            names = sorted(name for name in app.tasks if not name.startswith("celery."))
        except Exception:  # a shell in the middle of a line wants no answer but names
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


DURATION = Duration()
MOMENT = Moment()
JSON_LIST = JsonOf(list, "list")
JSON_OBJECT = JsonOf(dict, "object")
TASK = TaskName()
JOB_ID = click.IntRange(1, 2**63 - 1)
JOB_ID.name = "job id"


class Status(Choice):
    """One of the nine words, in any case."""

    name = "status"

    def __init__(self, *words: JobStatus) -> None:
        super().__init__([word.value for word in words or tuple(JobStatus)], case_sensitive=False)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Say STATUS; the words stand in the help."""
        return "STATUS"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the words as they are written, whatever the case of what was typed."""
        begun = incomplete.lower()
        return [CompletionItem(word) for word in self.choices if word.lower().startswith(begun)]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> JobStatus:
        """Return the status."""
        found = [word for word in self.choices if word.lower() == str(value).lower()]
        if not found:
            self.fail(f"{value!r} is no status for this; accepted: {', '.join(self.choices)}", param, ctx)
        return JobStatus(found[0])


STATUS = Status()
