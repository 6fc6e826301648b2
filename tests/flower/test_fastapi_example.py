"""The page of `examples/fastapi` in a real browser, with a worker, PostgreSQL and Redis.

With `JOBHANDLE_TEST_SCREENSHOT=docs/fastapi.png` the picture in the documentation is taken again.
"""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.flower import browser
from tests.reaper import Reaper
from tests.servers.places import free_port
from tests.support import eventually, missing
from tests.workers import ROOT, WorkerProcess

pytestmark = pytest.mark.flower

EXAMPLE = ROOT / "examples" / "fastapi"


@pytest.fixture
def service(
    postgresql_url: str,
    redis_url: str,
    tmp_path: Path,
    reaper: Reaper,
    start_worker: Callable[..., WorkerProcess],
) -> Iterator[str]:
    """Start the service and its worker; return the URL."""
    pytest.importorskip("uvicorn")
    variables = {
        "DATABASE_URL": postgresql_url,
        "BROKER_URL": redis_url,
        "SECONDS_A_PAGE": "0.1",
        "PYTHONPATH": str(EXAMPLE),
    }
    environment = {**os.environ, **variables}
    subprocess.run([sys.executable, "scans.py"], cwd=EXAMPLE, env=environment, check=True)
    port = free_port()
    with (tmp_path / "service.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "scans:web", "--port", str(port)],
            cwd=EXAMPLE,
            env=environment,
            stdout=log,
            stderr=log,
        )
    reaper.watch(process.pid)
    start_worker("scans:app", environment=variables)
    url = f"http://127.0.0.1:{port}"
    eventually(lambda: answers(url), message=(tmp_path / "service.log").read_text())
    yield url
    process.terminate()
    process.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10):
            return True
    except urllib.error.URLError:
        return False


@pytest.fixture
def page(service: str) -> Iterator[Any]:
    """The page, in which ann has logged in."""
    if find_spec("playwright") is None:
        missing("no Playwright: pip install playwright")
    if browser.program() is None:
        missing(f"none of {', '.join(browser.PROGRAMS)} is on the PATH")
    with browser.opened(None) as page:
        page.goto(service)
        log_in(page, "ann")
        yield page


def log_in(page: Any, name: str) -> None:
    page.locator("[name=name]").fill(name)
    with page.expect_response("**/scans"):
        page.get_by_text("Log in").click()


def create(page: Any, title: str, pages: int) -> Any:
    """Submit a scan in the page; return its row."""
    page.locator("[name=title]").fill(title)
    page.locator("[name=pages]").fill(str(pages))
    page.get_by_text("Read").click()
    row = page.locator("tr", has_text=title)
    row.wait_for()
    return row


def shown(row: Any, name: str) -> str:
    return str(row.locator(f".{name}").inner_text())


def progress(row: Any) -> float:
    return float(row.locator("progress").evaluate("bar => bar.value"))


def test_page_shows_progress_live_and_cancels(page: Any) -> None:
    picture = os.environ.get("JOBHANDLE_TEST_SCREENSHOT")
    long, short = create(page, "Atlas", 100 if picture else 1000), create(page, "Letter", 3)
    page.evaluate("window.isTheSame = true")
    eventually(lambda: shown(long, "status") == "Running" and progress(long) > 0, message="it runs")
    seen = progress(long)
    eventually(lambda: progress(long) > seen, message="its progress is shown")
    eventually(lambda: shown(short, "status") == "Finished")
    assert (progress(short), shown(short, "message")) == (1, "page 3 of 3")
    assert not short.locator(".cancel").is_visible()
    if picture:
        eventually(lambda: progress(long) > 0.4)
        page.set_viewport_size({"width": 900, "height": 320})
        page.screenshot(path=picture)

    long.locator(".cancel").click()
    eventually(lambda: shown(long, "status") == "Cancelled")
    assert page.evaluate("window.isTheSame"), "the page was not loaded again"

    log_in(page, "bob")
    eventually(lambda: page.locator("#scans tr").count() == 0, message="bob sees no scan of ann's")
