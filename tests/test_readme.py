"""The README's program runs, its commands are those of CI, and it reads the same on PyPI."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.workers import WorkerProcess

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def test_readme_program_runs_and_prints_its_result(
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

    def run(*command: str) -> str:
        ran = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    run("-m", "celery", "-A", "shop", "jobs", "upgrade")
    start_worker("shop", environment=path)
    assert run("shop.py") == "1 {'path': 'a.tif', 'size': 96} a.tif: 100 %\n"


def test_readme_has_at_most_150_lines_and_a_program_of_25() -> None:
    text = README.read_text()
    (program,) = re.findall(r"```python\n(# shop\.py\n.*?)```", text, re.DOTALL)
    assert len(text.splitlines()) <= 150
    assert len([line for line in program.splitlines() if line]) <= 25


def test_readme_has_no_relative_link_or_image() -> None:
    """PyPI shows the README without the repository beside it."""
    text = README.read_text()
    assert not [
        target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not target.startswith("https://")
    ]
    assert "<img" not in text


def test_readme_links_into_the_site_name_existing_pages() -> None:
    targets = re.findall(
        r"https://jobhandle-celery\.github\.io/jobhandle-celery/([\w/-]+)", README.read_text()
    )
    assert targets
    assert not [target for target in targets if not (ROOT / "docs" / f"{target.strip('/')}.md").is_file()]


def test_readme_shows_the_test_command_of_ci() -> None:
    (command,) = re.findall(r'^test_command="(.*)"$', (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert f"\n{command}\n" in README.read_text()
