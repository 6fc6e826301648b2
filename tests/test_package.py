"""The package: its public names, what importing it loads, what it declares, its version."""

import ast
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import jobhandle_celery


@pytest.mark.parametrize("name", jobhandle_celery.__all__)
def test_public_name_is_importable(name: str) -> None:
    value = getattr(jobhandle_celery, name)
    assert value.__name__ == name
    assert value.__module__.startswith("jobhandle_celery.")
    assert name in dir(jobhandle_celery)


def test_unknown_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'JobsHandle'"):
        jobhandle_celery.JobsHandle  # type: ignore[attr-defined]  # noqa: B018  # the access is the test
    with pytest.raises(ImportError, match="JobsHandle"):
        from jobhandle_celery import JobsHandle  # type: ignore[attr-defined]  # noqa: F401  # the same


def test_import_loads_neither_celery_nor_sqlalchemy() -> None:
    program = "import sys, jobhandle_celery; print(*{'sqlalchemy', 'celery', 'redis'} & {*sys.modules})"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def test_each_imported_package_is_declared() -> None:
    """In the dependencies or an extra; except what only type checkers import, and pytest for its plugin."""
    declared = {
        re.split(r"[\s\[<>=;!]", requirement)[0].lower()
        for requirement in metadata.requires("jobhandle-celery") or ()
    }
    imported = set()
    for path in Path(jobhandle_celery.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body.clear()
        for node in ast.walk(tree):
            match node:
                case ast.Import(names):
                    imported |= {name.name.partition(".")[0] for name in names}
                case ast.ImportFrom(module=str(module), level=0):
                    imported.add(module.partition(".")[0])
    foreign = {name.lower() for name in imported - sys.stdlib_module_names - {"jobhandle_celery", "pytest"}}
    assert "celery" in foreign
    assert foreign <= declared


def test_version_of_the_package_is_that_of_its_metadata() -> None:
    assert metadata.version("jobhandle-celery") == jobhandle_celery.__version__


def test_import_and_publishing_need_no_redis_client() -> None:
    """Users of RabbitMQ have none installed (`tests/installed.py` runs a job without it)."""
    program = (
        "import sys; sys.modules['redis'] = None\n"
        "from celery import Celery\n"
        "from jobhandle_celery import Jobs\n"
        "app = Celery('shop', broker='amqp://127.0.0.1:1//')\n"
        "with_jobs = Jobs(app, 'sqlite:///never-opened.sqlite3')\n"
        "from jobhandle_celery.broker import connection, publisher\n"
        "print(connection._is_about_the_message(ConnectionRefusedError()))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"
