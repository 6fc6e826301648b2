"""A real Flower, used by its HTTP API."""

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
from tests.worker.cluster import Cluster
from tests.workers import ROOT


class Flower:
    """A Flower on the broker of a cluster, with a login."""

    def __init__(
        self,
        cluster: Cluster,
        reaper: Reaper,
        settings: Mapping[str, str] | None = None,
        app: str = "tests.flower.bodies:app",
    ) -> None:
        self.port = free_port()
        self.login = ("ann", secrets.token_hex(8))
        self._cluster = cluster
        self._reaper = reaper
        self._log = cluster.folder / f"flower-{self.port}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", app, "flower"],
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
            "JOBHANDLE_TEST_BROKER_URL": self._cluster.broker_url,
            "JOBHANDLE_TEST_DATABASE_URL": self._cluster.database_url,
            "JOBHANDLE_TEST_SETTINGS": json.dumps(self._cluster.settings),
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_until_it_listens(self) -> None:
        """Wait until it receives events of a worker; it misses all events before."""
        eventually(self._answers, message="Flower does not answer")
        eventually(
            lambda: self.task(str(self._cluster.call("add", 1, 1).id)), message="Flower receives no events"
        )

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            return self._ask("healthcheck") == b"OK"
        except OSError:
            return False

    def task(self, task_id: str | None) -> dict[str, Any] | None:
        """Return its information about a task; None if it has none."""
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
        """Wait until it shows a job in a state; return its information."""
        eventually(lambda: self.state(handle) == state, message=f"Flower does not show {state}")
        known = self.task(handle.get_job().task_id)
        assert known is not None
        return known

    def search(self, query: str) -> set[str]:
        """Return the ids of the tasks that its search finds."""
        return set(json.loads(self._ask(f"api/tasks?search={quote(query)}")))

    def press(self, button: str, **fields: object) -> str:
        """Send the POST request of a button; return the message of the response."""
        answer = json.loads(self._ask(f"api/{button}", urlencode(fields).encode()))
        return str(answer["message"])

    def get(self, path: str) -> dict[str, Any]:
        """Return the answer to a GET request."""
        answer: dict[str, Any] = json.loads(self._ask(path))
        return answer

    def post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        """Return the answer to a POST request with a JSON document."""
        answer: dict[str, Any] = json.loads(self._ask(path, json.dumps(body).encode()))
        return answer

    def page(self, path: str) -> str:
        """Return a page as HTML."""
        return self._ask(path).decode()

    def refresh(self, worker: str) -> None:
        """Make it inspect the workers, as its pages do, until this one has answered."""

        def known() -> bool:
            self._ask("api/workers?refresh=1")
            return bool(json.loads(self._ask("api/workers")).get(worker, {}).get("registered"))

        eventually(known, message=f"Flower has no answer of {worker}")

    def _ask(self, path: str, body: bytes | None = None) -> bytes:
        known = {"Authorization": f"Basic {b64encode(':'.join(self.login).encode()).decode()}"}
        with urllib.request.urlopen(
            urllib.request.Request(f"{self.url}/{path}", body, known), timeout=30
        ) as answer:
            content: bytes = answer.read()
        return content

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
        self._reaper.forget(self._process.pid)
