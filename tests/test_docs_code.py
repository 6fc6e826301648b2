"""The code of the README and of each page of the documentation runs, and its commands parse.

A page's Python blocks are one program, which runs with the names of the README's ``shop.py``, on SQLite, with
jobs that run where they are submitted. A block that begins with ``# name.py`` is a file and has its own test.
The comment ``<!-- not run: reason -->`` before a block excludes it.
"""

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from sqlalchemy import Engine, Integer, String, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column

import jobhandle_celery
from jobhandle_celery.cli import jobs as jobs_group
from tests.documentation import PAGES, blocks, files, python, with_servers
from tests.workers import WorkerProcess

IN_A_PROCESS = {
    *("docs/how-to/django.md", "docs/how-to/from-django-celery-results.md", "docs/how-to/testing.md"),
    *("docs/tutorial/first-job.md", "docs/tutorial/pipeline.md"),
}
"""Pages whose blocks make one program of several files."""


def module(name: str, code: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import that code under that name, until the end of the test."""
    made = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, made)
    exec(compile(code, f"{name}.py", "exec"), vars(made))
    return made


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Make the README's ``shop.py``, whose jobs run at once, with its tables, in the current folder."""
    monkeypatch.chdir(tmp_path)
    program = with_servers(files("README.md")["shop.py"], "sqlite:///shop.sqlite3", "memory://")
    made = module("shop", program, monkeypatch)
    made.app.conf.task_always_eager = True
    made.jobs.upgrade_schema()
    yield made
    made.jobs.close()


class Base(DeclarativeBase):
    """The user's tables."""


class Order(Base):
    """A row of the user."""

    __tablename__ = "order"
    id = mapped_column(Integer, primary_key=True)
    path = mapped_column(String)


@pytest.fixture
def engine(shop: ModuleType) -> Iterator[Engine]:
    """Return the user's engine to the same database."""
    made = create_engine("sqlite:///shop.sqlite3")
    Base.metadata.create_all(made)
    yield made
    made.dispose()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python") and page not in IN_A_PROCESS]
)
def test_python_of_page_runs(page: str, shop: ModuleType, engine: Engine) -> None:
    names = {
        **vars(shop),
        "Job": jobhandle_celery.Job,
        "Order": Order,
        "Session": Session,
        "engine": engine,
        "order": Order(path="a.tif"),
    }
    for block in blocks(page, "python"):
        if block.runs and not block.file:
            # Line numbers of the page in tracebacks.
            exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), names)


def test_second_tree_of_the_workflows_page_is_refused(
    shop: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """The jobs of the page's own program have ended at once."""
    first, *others = blocks("docs/how-to/workflows.md", "python")
    (night,) = [block for block in others if 'unique_key="nightly"' in block.code]
    names = dict(vars(shop))
    exec(first.code, names)
    shop.app.conf.task_always_eager = False
    exec(night.code, names)
    before = shop.jobs.find()

    exec(night.code, names)

    assert "the tree of last night has not ended: unique_key: " in capsys.readouterr().out
    assert shop.jobs.find() == before


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sql")])
def test_sql_of_page_runs(page: str, engine: Engine) -> None:
    for block in blocks(page, "sql"):
        if "…" not in block.code:
            with engine.connect() as connection:
                connection.execute(text(block.code))


def test_files_of_pages_have_a_test() -> None:
    assert {page: sorted(files(page)) for page in PAGES if files(page)} == {
        "README.md": ["shop.py"],
        "docs/how-to/django.md": [
            "mysite/__init__.py",
            "mysite/celery.py",
            "mysite/nightly.py",
            "mysite/settings.py",
            "mysite/tasks.py",
        ],
        "docs/how-to/from-django-celery-results.md": [
            "mysite/models.py",
            "mysite/settings.py",
            "mysite/settings_after.py",
            "mysite/tasks.py",
        ],
        "docs/how-to/testing.md": [
            "test_body.py",
            "test_canvas.py",
            "test_faults.py",
            "test_orders.py",
            "test_settings.py",
            "test_shop.py",
            "test_submitted.py",
        ],
        "docs/how-to/testing-with-a-worker.md": ["test_shop_with_worker.py", "test_with_worker.py"],
        "docs/tutorial/first-job.md": ["cancel.py", "shop.py", "submit.py"],
        "docs/tutorial/pipeline.md": ["sheet.py", "studio.py"],
        "docs/tutorial/web-service.md": ["web.py"],
    }


@pytest.fixture
def tutorial(
    tmp_path: Path, redis_url: str, start_worker: Callable[..., WorkerProcess]
) -> Callable[[str, str], WorkerProcess]:
    """Write the files of a page, create the tables and start the worker: `tutorial(page, app)`."""

    def start(page: str, app: str) -> WorkerProcess:
        for name, code in files(page).items():
            database_url = f"sqlite:///{tmp_path}/{app}.sqlite3"
            (tmp_path / name).write_text(
                with_servers(code, database_url, redis_url) if name == f"{app}.py" else code
            )
        python("-m", "celery", "-A", app, "jobs", "upgrade", folder=tmp_path)
        return start_worker(app, environment={"PYTHONPATH": str(tmp_path)})

    return start


def test_first_job_tutorial_runs(tmp_path: Path, tutorial: Callable[[str, str], WorkerProcess]) -> None:
    submitted, cancelled = (block.code for block in blocks("docs/tutorial/first-job.md", "text"))
    worker = tutorial("docs/tutorial/first-job.md", "shop")
    assert python("submit.py", folder=tmp_path) == submitted
    worker.terminate()
    worker.wait()
    assert python("cancel.py", folder=tmp_path) == cancelled


def test_pipeline_tutorial_runs(tmp_path: Path, tutorial: Callable[[str, str], WorkerProcess]) -> None:
    (shown,) = (block.code for block in blocks("docs/tutorial/pipeline.md", "text"))
    tutorial("docs/tutorial/pipeline.md", "studio")
    assert python("sheet.py", folder=tmp_path) == shown


def test_web_service_tutorial_answers(shop: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi.testclient import TestClient

    web = module("web", files("docs/tutorial/web-service.md")["web.py"], monkeypatch)
    client = TestClient(web.api)
    made = client.post("/thumbnails", params={"path": "a.tif"}, headers={"X-User": "ann"})
    assert made.status_code == 202
    url = f"/thumbnails/{made.json()['id']}"
    shown = client.get(url, headers={"X-User": "ann"}).json()
    assert (shown["status"], shown["progress"], shown["result"]["size"]) == ("Finished", 1.0, 96)
    assert client.delete(url, headers={"X-User": "ann"}).json() == {"status": "Finished"}
    assert [client.get(url, headers=headers).status_code for headers in ({"X-User": "bob"}, {})] == [404, 422]
    assert client.delete(url, headers={"X-User": "bob"}).status_code == 404


def test_testing_guide_passes_with_the_shop_of_the_readme(tmp_path: Path) -> None:
    """Its broker and its database do not exist."""
    program = with_servers(
        files("README.md")["shop.py"], "postgresql://127.0.0.1:1/shop", "redis://127.0.0.1:1"
    )
    (tmp_path / "shop.py").write_text(program)
    for name, code in files("docs/how-to/testing.md").items():
        (tmp_path / name).write_text(code)
    (configuration,) = blocks("docs/how-to/testing.md", "toml")
    (tmp_path / "pyproject.toml").write_text(configuration.code)
    count = sum(code.count("\ndef test_") for code in files("docs/how-to/testing.md").values())
    assert f"{count} passed" in python("-m", "pytest", "-q", "-p", "no:xdist", folder=tmp_path)


def test_commands_of_all_pages_parse() -> None:
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.code.splitlines()]
    commands = [line.split(" jobs ", 1)[1] for line in lines if re.search(r"celery -A \w+ jobs ", line)]
    assert len(commands) >= 20
    for command in commands:
        arguments = shlex.split(command, comments=True)
        group = jobs_group.make_context("jobs", list(arguments), resilient_parsing=True)
        name, found, rest = jobs_group.resolve_command(group, arguments)
        assert found is not None, command
        found.make_context(name, rest, parent=group)
