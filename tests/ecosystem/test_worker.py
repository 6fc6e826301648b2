"""A prefork worker that Sentry and OpenTelemetry observe at once, and a Prometheus exporter of its events."""

import json
import re
import socket
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.reaper import Reaper
from tests.support import eventually
from tests.worker.cluster import Cluster, NewCluster
from tests.worker.conftest import module_cluster

__all__ = ["module_cluster"]

pytestmark = pytest.mark.ecosystem


@dataclass
class Observed:
    """A cluster, and what the tools in its worker would have sent."""

    cluster: Cluster
    file: Path

    def sent(self, kind: str) -> list[Any]:
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        return [sent for of, _, sent in map(json.loads, lines) if of == kind]

    def errors(self) -> Counter[tuple[Any, ...]]:
        """Return the kinds of errors that Sentry has received, and their loggers."""
        return Counter(
            (event.get("logger"), *[error["type"] for error in event.get("exception", {}).get("values", ())])
            for event in self.sent("sentry event")
        )


@pytest.fixture(scope="module")
def observed(module_cluster: NewCluster) -> Observed:
    # On a busy machine a lease of seconds ends while its worker lives.
    cluster = module_cluster(settings={"jobhandle_progress_events": False, "jobhandle_lease": 60})
    file = cluster.folder / "observed"
    cluster.start(
        "tests.ecosystem.observed:app",
        arguments=["-E"],
        concurrency=1,
        environment={"OBSERVED": str(file)},
    )
    return Observed(cluster, file)


@pytest.mark.parametrize(
    ("task", "args", "options", "count"),
    [
        ("raise_value_error", ["no good"], {}, 1),
        ("kill_own_process", [], {}, 2),  # of the pool and of the task
        ("deaf", ["/dev/null", 60], {"time_limit": 1}, 3),
    ],
)
def test_errors_of_a_job_are_those_of_a_plain_task(
    observed: Observed, task: str, args: list[Any], options: dict[str, Any], count: int
) -> None:
    cluster = observed.cluster

    def errors_since(before: Counter[tuple[Any, ...]]) -> Counter[tuple[Any, ...]]:
        eventually(lambda: (observed.errors() - before).total() >= count)
        cluster.fence()
        return observed.errors() - before

    before = observed.errors()
    cluster.call(task, *args, **options)
    plain = errors_since(before)
    before = observed.errors()
    handle = cluster.submit(task, *args, **options)
    assert errors_since(before) == plain
    assert plain.total() == count
    assert handle.wait(30) == "Error"


def test_spans_of_a_worker_are_those_of_its_bodies(observed: Observed) -> None:
    """Its lease, its polls, its claims, the message that its sweeper publishes, and results make none.

    The process of a body writes how it failed, while its main process writes results.
    """
    cluster = observed.cluster
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert cluster.submit("add", 1, 2).wait(30) == "Finished"
    handle = cluster.submit(
        "unserialisable_result",
        headers={"traceparent": parent},
        scheduled_for=timedelta(milliseconds=10),
    )
    assert handle.wait(30) == "Error"
    cluster.fence()
    spans = observed.sent("span")
    (run,) = [span for span in spans if span["attributes"].get("jobhandle.job_id") == handle.job_id]
    assert (run["name"], run["trace"], run["parent"]) == (
        "run/worker.unserialisable_result",
        0x0AF7651916CD43DD8448EB211C80319C,
        0xB7AD6B7169203331,
    )
    runs = {span["id"] for span in spans if span["name"].startswith("run/")}
    statements = [span for span in spans if span["by"] == "psycopg"]
    assert run["id"] in {span["parent"] for span in statements}
    assert {span["parent"] for span in statements} <= runs
    assert {span["parent"] for span in spans if span["name"] == "LPUSH"} <= runs


@pytest.fixture(scope="module")
def exporter(observed: Observed, reaper: Reaper) -> Iterator[str]:
    """Run celery-prometheus-exporter until it counts tasks of the worker; return its address."""
    with socket.socket() as reserved:  # for the exporter alone: bound, and not listening
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
        words = [
            "-m",
            "celery_prometheus_exporter",
            "--broker",
            observed.cluster.broker_url,
            "--addr",
            address,
        ]
        with (observed.cluster.folder / "exporter.log").open("w") as log:
            process = subprocess.Popen([sys.executable, *words], stderr=log, start_new_session=True)
        reaper.watch(process.pid)
        try:
            url = f"http://{address}/metrics"
            eventually(lambda: metrics(url))

            def counts() -> bool:
                observed.cluster.fence()
                return bool(counted(url).get(("worker.add", "SUCCESS")))

            eventually(counts)
            yield url
        finally:
            process.kill()
            process.wait()


def metrics(url: str) -> str:
    """Return the metrics; empty while the exporter starts."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return str(response.read().decode())
    except OSError:
        return ""


def counted(url: str) -> dict[tuple[str, str], float]:
    """Return how many tasks there are, by name and state, without zeros."""
    found = re.findall(
        r'^celery_tasks_by_name\{name="(.+)",state="(.+)"\} (\S+)$', metrics(url), re.MULTILINE
    )
    return {(name, state): float(value) for name, state, value in found if float(value)}


@pytest.mark.parametrize(
    ("task", "args", "state"),
    [
        ("same", ["done"], "SUCCESS"),
        ("raise_tracked", ["no good"], "FAILURE"),
        ("kill_own_process", [], "FAILURE"),
    ],
)
def test_prometheus_exporter_counts_jobs_as_plain_tasks(
    observed: Observed, exporter: str, task: str, args: list[Any], state: str
) -> None:
    cluster = observed.cluster
    key = (f"worker.{task}", state)
    cluster.call(task, *args)
    eventually(lambda: counted(exporter).get(key) == 1)
    cluster.submit(task, *args)
    eventually(lambda: counted(exporter).get(key) == 2)
    cluster.fence()
    states = {state: count for (name, state), count in counted(exporter).items() if name == key[0]}
    assert states == {state: 2}
