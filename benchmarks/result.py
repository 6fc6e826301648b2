"""The results of a benchmark, kept as JSON, from which the report is written."""

import dataclasses
import json
import os
import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "results"


@dataclass
class Series:
    """Measurements of one quantity, one per round."""

    what: str
    values: list[float]
    unit: str


@dataclass
class Goal:
    """A bound for the median of the rounds."""

    what: str
    values: list[float]
    bound: float
    unit: str = ""
    at_least: bool = True
    """False: the bound is an upper one."""


@dataclass
class Curve:
    """Lines of points over one axis, for a plot."""

    title: str
    x: str
    y: str
    lines: dict[str, list[tuple[float, float]]]
    logarithmic: bool = False
    """Whether the x axis is logarithmic."""


@dataclass
class Result:
    """The results of one benchmark."""

    name: str
    title: str
    method: str
    """How it was measured, for the report."""
    goals: list[Goal] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    """By title; the first row of each has the headings."""
    missing: dict[str, str] = field(default_factory=dict)
    """What could not be measured, with the reason."""
    quick: bool = False
    seconds: float = 0.0
    load: float = 0.0
    """The machine's load average over the minute before the start."""
    when: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
    surroundings: dict[str, str] = field(default_factory=dict)

    def save(self, folder: Path = FOLDER) -> None:
        """Write the result to its file."""
        folder.mkdir(exist_ok=True)
        text = json.dumps(dataclasses.asdict(_rounded(self)), indent=1, ensure_ascii=False)
        (folder / f"{self.name}.json").write_text(text + "\n")


def load(name: str, folder: Path = FOLDER) -> Result | None:
    """Return the result of a benchmark's last run; None if it has not run."""
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    read: dict[str, Any] = json.loads(path.read_text())
    read["goals"] = [Goal(**goal) for goal in read["goals"]]
    read["series"] = [Series(**item) for item in read["series"]]
    for item in read["curves"]:
        item["lines"] = {line: [(x, y) for x, y in points] for line, points in item["lines"].items()}
    read["curves"] = [Curve(**item) for item in read["curves"]]
    return Result(**read)


PACKAGES = (
    *("celery", "kombu", "redis", "SQLAlchemy", "psycopg", "jobhandle-celery"),
    *("django-celery-results", "procrastinate", "rq", "dramatiq"),
)


def surroundings() -> dict[str, str]:
    """Return the machine, Python and versions of packages of this process."""
    found = {"cores": str(os.cpu_count()), "machine": platform.machine(), "Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _rounded(result: Result) -> Result:
    """Return a copy with numbers of six digits: more are noise."""
    return dataclasses.replace(
        result,
        seconds=round(result.seconds, 1),
        load=round(result.load, 2),
        goals=[dataclasses.replace(goal, values=list(map(_round, goal.values))) for goal in result.goals],
        series=[dataclasses.replace(item, values=list(map(_round, item.values))) for item in result.series],
        curves=[
            dataclasses.replace(
                item,
                lines={
                    line: [(_round(x), _round(y)) for x, y in points] for line, points in item.lines.items()
                },
            )
            for item in result.curves
        ],
    )


def _round(value: float) -> float:
    return float(f"{value:.6g}")
