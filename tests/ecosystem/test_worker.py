"""A prefork worker that Sentry and OpenTelemetry observe at once, and a Prometheus exporter of its events."""

import json
import re
import socket
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
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
    cluster = module_cluster(settings={"jobhandle_progress_events": False})
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
    """Its lease, its polls, its claims and the message that its sweeper publishes make none."""
    cluster = observed.cluster
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    handle = cluster.submit(
        "add", 1, 2, headers={"traceparent": parent}, scheduled_for=timedelta(milliseconds=10)
    )
    assert handle.wait(30) == "Finished"
    cluster.fence()
    spans = observed.sent("span")
    (run,) = [span for span in spans if span["attributes"].get("jobhandle.job_id") == handle.job_id]
    assert (run["name"], run["trace"], run["parent"]) == (
        "run/worker.add",
        0x0AF7651916CD43DD8448EB211C80319C,
        0xB7AD6B7169203331,
    )
    runs = {span["id"] for span in spans if span["name"].startswith("run/")}
    statements = [span for span in spans if span["by"] == "psycopg"]
    assert run["id"] in {span["parent"] for span in statements}
    assert {span["parent"] for span in statements} <= runs
    assert {span["parent"] for span in spans if span["name"] == "LPUSH"} <= runs


@contextmanager
def exporter(broker_url: str, reaper: Reaper) -> Iterator[str]:
    """Run celery-prometheus-exporter; yield the address of its metrics."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = ["-m", "celery_prometheus_exporter", "--broker", broker_url, "--addr", address]
    with subprocess.Popen(
        [sys.executable, *words], stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        reaper.watch(process.pid)
        yield f"http://{address}/metrics"
        process.kill()


def metrics(url: str) -> dict[str, float]:
    """Return metrics by their names and labels; empty while the exporter starts."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            text = response.read().decode()
    except OSError:
        return {}
    return {name: float(value) for name, value in re.findall(r"^(\w+(?:\{.*\})?) (\S+)$", text, re.MULTILINE)}


def test_prometheus_exporter_counts_jobs_as_plain_tasks(observed: Observed, reaper: Reaper) -> None:
    cluster = observed.cluster
    ends = [("append", "SUCCESS"), ("raise_tracked", "FAILURE"), ("kill_own_process", "FAILURE")]
    args: dict[str, list[Any]] = {"append": [str(cluster.new_file()), "done"], "raise_tracked": ["no good"]}
    with exporter(cluster.broker_url, reaper) as url:

        def counted(task: str, state: str) -> float:
            return metrics(url).get(f'celery_tasks_by_name{{name="worker.{task}",state="{state}"}}', 0)

        def ready() -> bool:
            cluster.fence()
            return counted("add", "SUCCESS") > 0

        eventually(ready, 60)
        for task, state in ends:
            cluster.call(task, *args.get(task, ()))
            eventually(lambda task=task, state=state: counted(task, state) == 1, 30)  # type: ignore[misc]
            cluster.submit(task, *args.get(task, ()))
            eventually(lambda task=task, state=state: counted(task, state) == 2, 30)  # type: ignore[misc]
        cluster.fence()
        assert [counted(task, state) for task, state in ends] == [2, 2, 2]
        names = [name for name, value in metrics(url).items() if value and "celery_tasks_by_name" in name]
        assert {name for name in names if "worker.add" not in name} == {
            f'celery_tasks_by_name{{name="worker.{task}",state="{state}"}}' for task, state in ends
        }
