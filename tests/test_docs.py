"""The documentation: its code runs, its commands parse, and its lists are those of the code."""

import re
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

from jobhandle_celery import JobStatus, status
from jobhandle_celery.settings import Settings

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def page(name: str) -> str:
    """Return the text of a page."""
    return (DOCS / name).read_text()


def first_column(text: str) -> list[str]:
    """Return the code in the first column of the page's tables."""
    return re.findall(r"^\| `([^`|]+)`", text, re.MULTILINE)


# Lists.


def test_statuses_page_has_the_diagram_of_the_code() -> None:
    diagram = (status.__doc__ or "").split("::\n\n")[1].rstrip()
    assert f"```text\n{diagram}\n```" in page("reference/statuses.md")


def test_statuses_page_has_each_status_once() -> None:
    listed, _ = page("reference/statuses.md").split("## Initial status")
    assert sorted(first_column(listed)) == sorted(JobStatus)


def test_settings_page_has_each_setting_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `jobhandle_(\w+)` \| (.*?) \|", page("reference/settings.md"), re.MULTILINE))
    assert rows.pop("database_url") == "none"
    defaults = {field.name: getattr(Settings(), field.name) for field in fields(Settings)}
    assert rows == {
        name: f"{value.total_seconds():g} s"
        if isinstance(value, timedelta)
        else "none"
        if value is None
        else f"`{value}`"
        for name, value in defaults.items()
    }


# Failure modes.

SECTIONS = re.findall(
    r"^### (.+?)\n(.*?)(?=^##|\Z)", page("explanation/failure-modes.md"), re.MULTILINE | re.DOTALL
)


def test_each_test_that_the_failure_modes_name_exists() -> None:
    named = {name for _, body in SECTIONS for name in re.findall(r"`(test_\w+)`", body)}
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    there = set(re.findall(r"^(?:async )?def (test_\w+)", "\n".join(sources), re.MULTILINE))
    assert len(named) > 60
    assert not named - there


def test_each_failure_mode_says_all_four_things() -> None:
    for title, body in SECTIONS:
        items = re.findall(r"^- \*\*(.+?)\*\*: .", body, re.MULTILINE)
        assert items == ["Jobs", "Recovered within", "Signs", "Tests"], title
