"""What a benchmark found: kept as JSON, so that the report can be written again without measuring again."""

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
    """Measurements of one thing, one a round."""

    what: str
    values: list[float]
    unit: str


@dataclass
class Goal:
    """Something to reach: a bound for the median of what the rounds gave."""

    what: str
    values: list[float]
    bound: float
    unit: str = ""
    at_least: bool = True
    """False: the bound is the most that it may be."""


@dataclass
class Curve:
    """How something grows: lines of points over one axis."""

    title: str
    x: str
    y: str
    lines: dict[str, list[tuple[float, float]]]
    logarithmic: bool = False
    """Of the x axis."""


@dataclass
class Result:
    """One benchmark's findings."""

    name: str
    title: str
    method: str
    """How it was measured, for the reader of the report."""
    goals: list[Goal] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    """By title, each with a row of headings first."""
    missing: dict[str, str] = field(default_factory=dict)
    """Contestants that could not run, and why."""
    quick: bool = False
    seconds: float = 0.0
    load: float = 0.0
    """Of the machine when it began: processes that ran or wanted to, as a mean of the minute before."""
    when: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
    surroundings: dict[str, str] = field(default_factory=dict)

    def save(self, folder: Path = FOLDER) -> None:
        """Write it to its file."""
        folder.mkdir(exist_ok=True)
        text = json.dumps(dataclasses.asdict(_rounded(self)), indent=1, ensure_ascii=False)
        (folder / f"{self.name}.json").write_text(text + "\n")


def load(name: str, folder: Path = FOLDER) -> Result | None:
    """Return what a benchmark found when it ran last; None if it never did."""
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
    """Say where this process runs and with what."""
    found = {"cores": str(os.cpu_count()), "machine": platform.machine(), "Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _rounded(result: Result) -> Result:
    """Return it with numbers of six digits: more are noise, and make the files long."""
    return dataclasses.replace(
        result,
        seconds=round(result.seconds, 1),
        load=round(result.load, 2),
        goals=[dataclasses.replace(goal, values=list(map(_six, goal.values))) for goal in result.goals],
        series=[dataclasses.replace(item, values=list(map(_six, item.values))) for item in result.series],
        curves=[
            dataclasses.replace(
                item,
                lines={line: [(_six(x), _six(y)) for x, y in points] for line, points in item.lines.items()},
            )
            for item in result.curves
        ],
    )


def _six(value: float) -> float:
    return float(f"{value:.6g}")
