"""Flower's pages in a headless Chromium, as a person sees and presses them.

``python -m tests.flower.browser URL NAME:PASSWORD FILE [QUERY]`` takes a picture of its page of tasks.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


def program() -> str | None:
    """Return where a Chromium is, or None."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


@contextmanager
def opened(login: tuple[str, str]) -> Iterator[Any]:
    """Open a page of a browser that knows the login."""
    from playwright.sync_api import sync_playwright  # beside the tests' other dependencies, not one of them

    with sync_playwright() as playwright:
        # No sandbox: it cannot be had as root, and the one site that is visited is our own.
        chromium = playwright.chromium.launch(executable_path=program(), args=["--no-sandbox"])
        try:
            yield chromium.new_page(
                http_credentials={"username": login[0], "password": login[1]},
                viewport={"width": 1440, "height": 760},
            )
        finally:
            chromium.close()


def search(page: Any, url: str, query: str) -> None:
    """Open the page of tasks and type a search; return when it has been answered."""

    def answers(response: Any) -> bool:
        asked = response.url + (response.request.post_data or "")
        return "/tasks/datatable" in asked and quote(query, safe="") in asked

    page.goto(f"{url}/tasks")
    with page.expect_response(answers):
        page.locator("input[type=search]").fill(query)


def press(page: Any, selector: str) -> str:
    """Click a button and return what Flower has answered: it says so on the page for five seconds only."""
    with page.expect_response(lambda response: "/api/" in response.url) as answered:
        page.locator(selector).click()
    return str(answered.value.text())


def rows(page: Any) -> list[dict[str, str]]:
    """Return what the table of tasks shows, by its columns."""
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
        page.wait_for_timeout(1000)  # fonts and fading; a picture is all that suffers
        page.screenshot(path=file)


if __name__ == "__main__":
    _take_picture(*sys.argv[1:])
