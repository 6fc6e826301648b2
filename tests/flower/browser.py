"""Flower's pages in a headless Chromium.

``python -m tests.flower.browser URL NAME:PASSWORD FILE [QUERY]`` saves a picture of the page of tasks.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


def program() -> str | None:
    """Return the path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


@contextmanager
def opened(login: tuple[str, str] | None) -> Iterator[Any]:
    """Open a page of a browser, with the login if there is one."""
    from playwright.sync_api import sync_playwright  # optional: not a dependency of the tests

    with sync_playwright() as playwright:
        # The sandbox does not work as root, and only our own Flower is visited.
        chromium = playwright.chromium.launch(executable_path=program(), args=["--no-sandbox"])
        try:
            credentials: Any = None if login is None else {"username": login[0], "password": login[1]}
            yield chromium.new_page(http_credentials=credentials, viewport={"width": 1440, "height": 760})
        finally:
            chromium.close()


def search(page: Any, url: str, query: str) -> None:
    """Open the page of tasks and search; return after the response."""

    def matches(response: Any) -> bool:
        request = response.url + (response.request.post_data or "")
        return "/tasks/datatable" in request and quote(query, safe="") in request

    page.goto(f"{url}/tasks")
    with page.expect_response(matches):
        page.locator("input[type=search]").fill(query)


def press(page: Any, selector: str) -> str:
    """Click a button and return the response: the page shows it for five seconds only."""
    with page.expect_response(lambda response: "/api/" in response.url) as answered:
        page.locator(selector).click()
    return str(answered.value.text())


def rows(page: Any) -> list[dict[str, str]]:
    """Return the rows of the table of tasks, by column."""
    columns = [text.strip().lower() for text in page.locator("#tasks-table thead th").all_inner_texts()]
    return [
        dict(zip(columns, map(str.strip, row.locator("td").all_inner_texts()), strict=False))
        for row in page.locator("#tasks-table tbody tr").all()
    ]


def _take_picture(url: str, login: str, file: str, query: str = "") -> None:
    name, _, password = login.partition(":")
    with opened((name, password)) as page:
        if query:
            search(page, url, query)
        else:
            page.goto(f"{url}/tasks")
        page.wait_for_timeout(1000)  # fonts and fading; only the picture depends on it
        page.screenshot(path=file)


if __name__ == "__main__":
    _take_picture(*sys.argv[1:])
