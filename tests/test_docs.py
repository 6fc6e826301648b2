"""The lists of the documentation are those of the code."""

import ast
import inspect
import re
import tomllib
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import jobhandle_celery
from jobhandle_celery import JobHandle, Jobs, JobStatus, errors, status
from jobhandle_celery.cli import jobs as jobs_group
from jobhandle_celery.cli.exit_codes import ExitCode
from jobhandle_celery.schema import metadata
from jobhandle_celery.settings import Settings

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def page(name: str) -> str:
    """Return the text of a page."""
    return (DOCS / name).read_text()


def first_column(text: str) -> list[str]:
    """Return the code in the first column of the page's tables."""
    return re.findall(r"^\| `([^`|]+)`", text, re.MULTILINE)


FILTERS = re.findall(r"`(\w+)=`", page("reference/operations.md"))


def test_statuses_page_has_the_diagram_of_the_code() -> None:
    diagram = (status.__doc__ or "").split("::\n\n")[1].rstrip()
    assert f"```text\n{diagram}\n```" in page("reference/statuses.md")


def test_statuses_page_has_each_status_once() -> None:
    listed, _ = page("reference/statuses.md").split("## Initial status")
    assert sorted(first_column(listed)) == sorted(JobStatus)


def test_settings_page_has_each_setting_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `jobhandle_(\w+)` \| (.*?) \|", page("reference/settings.md"), re.MULTILINE))
    assert rows.pop("database_url") == "none"
    assert rows.pop("durable") == "`False`"  # read when a task is published, apart from the others
    defaults = {field.name: getattr(Settings(), field.name) for field in fields(Settings)}
    assert rows == {
        name: f"{value.total_seconds():g} s"
        if isinstance(value, timedelta)
        else "none"
        if value is None
        else f"`{value}`"
        for name, value in defaults.items()
    }


def test_operations_page_has_each_operation_with_its_parameters() -> None:
    of_a_handle, of_jobs = page("reference/operations.md").split("## Of `Jobs`")
    for owner, listed in ((JobHandle, of_a_handle), (Jobs, of_jobs.split("The filters are")[0])):
        calls = {call.partition("(")[0]: call for call in first_column(listed)}
        assert sorted(calls) == sorted(
            name for name in vars(owner) if not name.startswith("_") and name != "detach_from"
        )
        for name, shown in calls.items():
            if callable(function := vars(owner)[name]):
                named = set(
                    re.findall(r"(\w+)(?==|[,)])", shown.replace("…filters", ",".join(FILTERS) + ","))
                )
                known = set(inspect.signature(function).parameters) - {"self"}
                assert named - {"None", "False", "100"} == known, name


def test_compatibility_page_has_the_version_of_each_tool_that_is_tested() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    pinned = dict(line.lower().split("==") for line in groups["ecosystem"] if "==" in line)
    pinned |= dict(re.findall(r'"--no-deps", "([\w-]+)==([\w.]+)"', (ROOT / "noxfile.py").read_text()))
    tools = page("reference/compatibility.md").split("## Tools around Celery")[1].split("## ")[0]
    rows = re.findall(r"^\| ([\w -]+) \| (\d[\w.]*) \|", tools, re.MULTILINE)
    assert {name.lower(): version for name, version in rows} == pinned


def test_errors_page_has_the_tree_of_the_code() -> None:
    tree = re.sub("^    ", "", errors.__doc__ or "", flags=re.MULTILINE)
    (shown,) = re.findall(r"```text\n(.*?)```", page("reference/errors.md"), re.DOTALL)
    assert shown in tree


def test_errors_page_has_each_error() -> None:
    public = [getattr(jobhandle_celery, name) for name in jobhandle_celery.__all__]
    named = {
        value.__name__ for value in public if isinstance(value, type) and issubclass(value, BaseException)
    }
    assert set(first_column(page("reference/errors.md"))) == named - {"JobHandleError"}


def test_tables_page_has_each_table_and_column() -> None:
    found = re.split(r"^## `(\w+)`$", page("reference/tables.md").split("## Useful")[0], flags=re.MULTILINE)
    listed = {table: first_column(text) for table, text in zip(found[1::2], found[2::2], strict=True)}
    assert listed == {
        table.name: [column.name for column in table.columns] for table in metadata.tables.values()
    }


def test_json_page_has_the_fields_of_each_document() -> None:
    _, job, event, worker = (
        sorted(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.+?) \|", text, re.MULTILINE))))
        for text in page("reference/json-output.md").split("\n## ")
    )
    source = (ROOT / "jobhandle_celery/cli/json_output.py").read_text()
    for name, listed in (("job_document", job), ("event_document", event), ("worker_document", worker)):
        (function,) = [
            node
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef) and node.name == name
        ]
        (document,) = [node.value for node in function.body if isinstance(node, ast.Return)]
        assert isinstance(document, ast.Dict)
        assert listed == sorted(str(key.value) for key in document.keys if isinstance(key, ast.Constant)), (
            name
        )


def test_command_line_page_has_each_exit_code() -> None:
    assert first_column(page("reference/command-line.md")) == [f"{code:d}" for code in ExitCode]


def test_json_page_has_each_command_that_prints_json() -> None:
    rows = re.findall(r"^\| (`.+?) \|", page("reference/json-output.md").split("## A job")[0], re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}
    assert listed == {
        name
        for name, command in jobs_group.commands.items()
        if any("--json" in parameter.opts for parameter in command.params)
    }


def test_navigation_has_each_page_once() -> None:
    listed = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_links_between_pages_of_the_repository_lead_somewhere() -> None:
    """``mkdocs build --strict`` checks the links of `docs/`; these pages are not of the cluster."""
    for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "tests/README.md", "tests/FAULTS.md"):
        text = (ROOT / name).read_text()
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
            assert (ROOT / name).parent.joinpath(target).exists(), f"{name}: {target}"
        for target in re.findall(r"https://jobhandle-celery\.github\.io/jobhandle-celery/([\w/-]+)", text):
            assert (DOCS / f"{target.strip('/')}.md").is_file(), f"{name}: {target}"


def test_each_number_of_a_fault_is_listed() -> None:
    listed = set(re.findall(r"^\| (\d+) \|", (ROOT / "tests/FAULTS.md").read_text(), re.MULTILINE))
    texts = [path.read_text() for path in (ROOT / "tests").rglob("*.py")]
    numbers = re.compile(r"\bfaults? (\d+(?:(?:, | and )\d+)*)")
    named = {number for text in texts for some in numbers.findall(text) for number in some.split()}
    assert len(named) > 50
    assert {number.strip(",") for number in named} - {"and"} <= listed


def test_architecture_names_each_module() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    package = ROOT / "jobhandle_celery"
    modules = [
        path.relative_to(package).as_posix()
        for folder in ("", "store", "broker", "worker", "durable", "testing")
        for path in package.joinpath(folder).glob("*.py")
        if path.name != "__init__.py"
    ]
    sections = dict(
        re.findall(r"^\| `(\w+)/` \| .*?\n\|---\|---\|\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    )
    (top,) = re.findall(r"^\| module \| .*?\n\|---\|---\|\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    named = {
        f"{folder}{name}.py"
        for folder, section in (("", top), *((f"{key}/", value) for key, value in sections.items()))
        for cell in re.findall(r"^\| (`.+?) \|", section, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", cell)
    }
    assert sorted(named) == sorted(modules)


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


# Log messages.

LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}


def logged() -> set[tuple[str, str]]:
    """Return the text and level of each message that the package logs."""
    found = set()
    for path in (ROOT / "jobhandle_celery").rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            names = {
                target.id: node.value
                for node in ast.walk(function)
                if isinstance(node, ast.Assign)
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            for node in ast.walk(function):
                match node:
                    case ast.Call(func=ast.Attribute(ast.Name("logger"), level), args=[text, *_]) if (
                        level in LEVELS
                    ):
                        given = names[text.id] if isinstance(text, ast.Name) else text
                        assert isinstance(given, ast.Constant), f"{path}:{node.lineno}: not one text"
                        found.add((str(given.value), LEVELS[level]))
                    case ast.Call(
                        func=ast.Attribute(ast.Name("self"), "_log"), args=[ast.Constant(text), *_]
                    ):
                        found.add((str(text), "warning"))
    return found


def test_log_messages_page_explains_each_message() -> None:
    row = re.compile(r"^\| (`+)(.+?) ?\1 \| (\w+) \|(.*?)\|.*\|$", re.MULTILINE)
    rows = [found.groups()[1:] for found in row.finditer(page("reference/log-messages.md"))]
    assert {(text, level) for text, level, _ in rows} == logged()
    assert all(meaning.strip() for _, level, meaning in rows if level != "debug")
