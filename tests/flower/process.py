"""A real Flower, asked over its HTTP API."""

import json
import os
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from jobhandle_celery import JobHandle
from tests.reaper import Reaper
from tests.servers.places import free_port
from tests.support import eventually
from tests.worker.site import Site
from tests.workers import ROOT


class Flower:
    """One Flower on the broker of a site, behind a login."""

    def __init__(self, site: Site, reaper: Reaper, settings: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self.login = ("ann", secrets.token_hex(8))
        self._site = site
        self._reaper = reaper
        self._log = site.folder / f"flower-{self.port}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "tests.flower.bodies:app", "flower"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, **self._environment(), **(settings or {})},
                start_new_session=True,
            )
        reaper.watch(self._process.pid)

    def _environment(self) -> dict[str, str]:
        return {
            "FLOWER_ADDRESS": "127.0.0.1",
            "FLOWER_PORT": str(self.port),
            "FLOWER_BASIC_AUTH": ":".join(self.login),
            "JOBHANDLE_TEST_BROKER_URL": self._site.broker_url,
            "JOBHANDLE_TEST_DATABASE_URL": self._site.database_url,
            "JOBHANDLE_TEST_SETTINGS": json.dumps(self._site.settings),
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_until_it_listens(self) -> None:
        """Wait until it hears what a worker of the site says; what was said before is lost."""
        eventually(self._answers, 60, "Flower does not answer")
        eventually(lambda: self.task(str(self._site.call("add", 1, 1).id)), 60, "Flower hears nothing")

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            return self._ask("healthcheck") == b"OK"
        except OSError:
            return False

    def task(self, task_id: str | None) -> dict[str, Any] | None:
        """Return what it knows of a task; None if nothing."""
        try:
            known: dict[str, Any] = json.loads(self._ask(f"api/task/info/{task_id}"))
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return None
        return known

    def state(self, handle: JobHandle) -> str | None:
        """Return the state in which it shows a job."""
        known = self.task(handle.get_job().task_id)
        return None if known is None else str(known["state"])

    def wait_for(self, handle: JobHandle, state: str) -> dict[str, Any]:
        """Wait until it shows a job in a state; return what it then knows."""
        eventually(lambda: self.state(handle) == state, 30, f"Flower does not show {state}")
        known = self.task(handle.get_job().task_id)
        assert known is not None
        return known

    def search(self, query: str) -> set[str]:
        """Return the ids of the tasks that its search finds."""
        return set(json.loads(self._ask(f"api/tasks?search={quote(query)}")))

    def press(self, button: str, **fields: object) -> str:
        """Do what a button of its pages does: a POST to its API. Return the message that it then shows."""
        answer = json.loads(self._ask(f"api/{button}", urlencode(fields).encode()))
        return str(answer["message"])

    def look_at(self, worker: str) -> None:
        """Have it ask the workers for their tasks, as its pages do, until this one has answered."""

        def known() -> bool:
            self._ask("api/workers?refresh=1")
            return bool(json.loads(self._ask("api/workers")).get(worker, {}).get("registered"))

        eventually(known, 60, f"Flower does not know {worker}")

    def _ask(self, path: str, body: bytes | None = None) -> bytes:
        known = {"Authorization": f"Basic {b64encode(':'.join(self.login).encode()).decode()}"}
        with urllib.request.urlopen(
            urllib.request.Request(f"{self.url}/{path}", body, known), timeout=30
        ) as answer:
            said: bytes = answer.read()
        return said

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
        self._reaper.forget(self._process.pid)
