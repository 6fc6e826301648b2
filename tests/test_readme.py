"""The README's program runs as it stands there, and what it says of the statuses is what the code has."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from jobhandle_celery import JobStatus, status
from tests.workers import WorkerProcess

README = Path(__file__).parent.parent / "README.md"
RECIPES = README.parent / "docs" / "recipes.md"


def test_the_program_of_the_readme_runs(
    tmp_path: Path, empty_postgresql_url: str, redis_url: str, start_worker: Callable[..., WorkerProcess]
) -> None:
    (program,) = re.findall(r"```python\n(# shop\.py\n.*?)```", README.read_text(), re.DOTALL)
    for here, there in (
        ("redis://localhost:6379/0", redis_url),
        ("postgresql+psycopg://localhost/shop", empty_postgresql_url),
    ):
        assert program.count(here) == 1
        program = program.replace(here, there)
    (tmp_path / "shop.py").write_text(program)
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])}
    start_worker("shop", environment=path)
    ran = subprocess.run(
        [sys.executable, "shop.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "1 {'path': 'a.tif', 'size': 96} a.tif: 100 %\n"


def test_the_recipe_for_tests_of_ones_own_service_works(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(# shop\.py\n.*?)```", README.read_text(), re.DOTALL)
    (recipe,) = re.findall(r"```python\n(# test_shop\.py\n.*?)```", RECIPES.read_text(), re.DOTALL)
    with_url = 'Jobs(app, "postgresql+psycopg://localhost/shop")'
    assert program.count(with_url) == 1
    (tmp_path / "shop.py").write_text(program.replace(with_url, "Jobs(app)"))
    (tmp_path / "test_shop.py").write_text(recipe)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-c", os.devnull, "test_shop.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 passed" in ran.stdout


def test_the_readme_draws_the_diagram_of_the_code() -> None:
    diagram = (status.__doc__ or "").split("::\n\n")[1]
    drawn = [line.rstrip() for line in diagram.splitlines()]
    readme = [line.rstrip() for line in README.read_text().splitlines()]
    start = readme.index(drawn[0])
    assert readme[start : start + len(drawn)] == drawn


def test_the_readme_says_what_each_status_means() -> None:
    rows = re.findall(r"^\| ([A-Z][\w, ]+) \|", README.read_text(), re.MULTILINE)
    named = {word for row in rows for word in row.split(", ")}
    assert set(JobStatus) <= named


def test_every_test_that_the_readme_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", README.read_text()))
    sources = [path.read_text() for path in README.parent.joinpath("tests").rglob("test_*.py")]
    there = set(re.findall(r"^def (test_\w+)", "\n".join(sources), re.MULTILINE))
    assert len(named) > 20
    assert not named - there


def test_each_row_of_what_breaks_says_all_five_things() -> None:
    _, table = README.read_text().split("\n| what breaks |")
    _head, _line, *rows = table.split("\n\n")[0].splitlines()
    assert len(rows) > 20
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 5, row
        assert all(cells), row
