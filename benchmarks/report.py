"""Writes `README.md` beside this file: people's prose, and the tables and plots of what was measured.

Prose stands in `prose/`, one file a benchmark and a few of their own (`introduction`, `findings`, …); the
report is made of it and of `results/`, and nothing is ever written into either.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from . import plots
from .arithmetic import summary
from .result import FOLDER as RESULTS
from .result import Goal, Result, Series, load

HERE = Path(__file__).resolve().parent
PROSE = HERE / "prose"


def write(names: Iterable[str], folder: Path = HERE, results: Path = RESULTS, prose: Path = PROSE) -> None:
    """Write the report of the benchmarks of these names, those of them that have run, and its plots."""
    found = [result for name in names if (result := load(name, results)) is not None]
    for result in found:
        plots.draw(result, folder)
    (folder / "README.md").write_text(text(found, prose))


def text(found: Sequence[Result], prose: Path) -> str:
    """Return the report."""
    parts = [
        "<!-- Written by `python -m benchmarks`. Prose belongs into prose/, where nothing overwrites it. -->",
        _prose(prose, "introduction"),
        "## Targets\n\n" + goals_table(found),
        _prose(prose, "findings"),
        *(_section(result, prose) for result in found),
        _prose(prose, "closing"),
        _surroundings(found),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def goals_table(found: Sequence[Result]) -> str:
    """Return all goals in one table."""
    rows = [["what", "target", "measured (median, quartiles)", ""]]
    for result in found:
        rows += [
            [goal.what, _bound(goal), _measured(goal.values, goal.unit), reached(goal)]
            for goal in result.goals
        ]
    return table(rows)


def reached(goal: Goal) -> str:
    """Say whether a goal was reached; nothing if it has no bound."""
    if not goal.bound:
        return ""
    median = summary(goal.values).median
    return "reached" if (median >= goal.bound if goal.at_least else median <= goal.bound) else "**missed**"


def series_table(series: Sequence[Series]) -> str:
    """Return measurements in a table, the ratio to the first of the same unit beside each."""
    rows = [["contestant", "against the first", "median", "quartiles", "spread", "rounds"]]
    first: dict[str, float] = {}
    for item in series:
        stats = summary(item.values)
        base = first.setdefault(item.unit, stats.median)
        against = f"{stats.median / base:.2f} ×" if base else ""
        rows.append(
            [
                item.what,
                against,
                f"{number(stats.median)} {item.unit}".strip(),
                f"{number(stats.low)} – {number(stats.high)}",
                f"± {stats.spread:.0%}",
                str(len(item.values)),
            ]
        )
    return table(rows)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, headings first, as a table of Markdown."""
    heads, *rest = rows
    lines = [heads, ["---"] * len(heads), *rest]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def number(value: float) -> str:
    """Return a number as people read it: three digits that mean something."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _bound(goal: Goal) -> str:
    if not goal.bound:
        return "–"
    return f"{'≥' if goal.at_least else '≤'} {number(goal.bound)} {goal.unit}".strip()


def _measured(values: Sequence[float], unit: str) -> str:
    stats = summary(values)
    spread = "" if len(values) < 2 else f" ({number(stats.low)} – {number(stats.high)})"
    return f"{number(stats.median)} {unit}{spread}"


def _section(result: Result, prose: Path) -> str:
    parts = [f"## {result.title}", f"`python -m benchmarks {result.name}`: {' '.join(result.method.split())}"]
    if result.quick:
        parts.append("*These are the numbers of a `--quick` run: they show that it works, and little more.*")
    if result.series:
        parts.append(series_table(result.series))
    for title, rows in result.tables.items():
        parts += [f"{title}:", table(rows)]
    parts += [f"![{curve.title}]({plots.name_of(result, curve)})" for curve in result.curves]
    if result.missing:
        parts.append(
            "Could not run here: " + "; ".join(f"{who} ({why})" for who, why in result.missing.items())
        )
    parts.append(_prose(prose, result.name))
    return "\n\n".join(part for part in parts if part)


def _prose(folder: Path, name: str) -> str:
    path = folder / f"{name}.md"
    return path.read_text().strip() if path.exists() else ""


def _surroundings(found: Sequence[Result]) -> str:
    """Say where all this was measured, each different machine or version with what was measured there."""
    groups: dict[str, list[str]] = {}
    for result in found:
        versions = {
            name: version for name, version in result.surroundings.items() if version != "not installed"
        }
        shared = "; ".join(f"{name} {version}" for name, version in versions.items())
        when = f"{result.when}, {result.seconds:.0f} s, load before it {result.load:.1f}"
        groups.setdefault(shared, []).append(f"{result.name} ({when})")
    lines = [f"- {', '.join(names)}: {shared}" for shared, names in groups.items()]
    return "## Where and when\n\n" + "\n".join(lines) if lines else ""
