"""A job's message is JSON or signed JSON; a pickle is rejected unread, also where plain tasks may use it."""

import base64
import importlib.util
import json
import os
import pickle
import uuid
from pathlib import Path
from typing import Any

import pytest

from jobhandle_celery import JobHandle, JobStatus
from tests.apps import lines_of
from tests.faults.fuzz_wire import QUIET, Passes
from tests.support import eventually
from tests.worker.cluster import DEFAULT_QUEUE, Cluster, NewCluster

pytestmark = pytest.mark.faults

TYPES = {"pickle": "application/x-python-serialize"}
if os.environ.get("CI") or importlib.util.find_spec("yaml"):  # kombu knows YAML where PyYAML is installed
    TYPES["yaml"] = "application/x-yaml"


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def cluster(module_cluster: NewCluster) -> Cluster:
    """A cluster whose worker accepts pickles and YAML from plain tasks."""
    cluster = module_cluster(database="sqlite", settings=QUIET | {"accept_content": ["json", *TYPES]})
    cluster.start(concurrency=1, environment={"C_FORCE_ROOT": "1"})
    return cluster


def body_of(kind: str, args: list[Any]) -> bytes:
    content = [args, {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    if kind == "pickle":
        return pickle.dumps(content)
    yaml = pytest.importorskip("yaml")
    text: str = yaml.dump(content)
    return text.encode()


def send(cluster: Cluster, message: bytes, kind: str, body: bytes, headers: dict[str, Any]) -> None:
    """Publish the message with `headers` merged in (None removes one) and with that body."""
    copy = json.loads(message)
    changed = {**copy["headers"], **headers}
    copy["headers"] = {name: value for name, value in changed.items() if name != "jobhandle" or value}
    encoding = "binary" if kind == "pickle" else "utf-8"
    copy |= {
        "content-type": TYPES[kind],
        "content-encoding": encoding,
        "body": base64.b64encode(body).decode(),
    }
    copy["properties"]["delivery_tag"] = str(uuid.uuid4())
    copy["properties"]["delivery_info"]["routing_key"] = DEFAULT_QUEUE
    cluster.redis.lpush(DEFAULT_QUEUE, json.dumps(copy))


def still_waits(cluster: Cluster, handle: JobHandle, message: bytes, path: Path) -> None:
    """Assert that the forged message had no effect, and that the true message runs the job."""
    cluster.fence()
    Passes(cluster).wait()
    assert lines_of(path) == []
    assert handle.job_status() is JobStatus.QUEUED
    assert handle.get_job().attempt == 0
    cluster.deliver(message)
    assert handle.wait(20) is JobStatus.FINISHED
    assert lines_of(path) == ["body"]


@pytest.mark.parametrize("kind", list(TYPES))
def test_plain_task_may_be_pickled_here(cluster: Cluster, kind: str) -> None:
    # Otherwise the tests below would prove nothing.
    path = cluster.new_file()
    _, message = cluster.submit_parked("append", str(path), "body")
    send(cluster, message, kind, body_of(kind, [str(path), kind]), {"jobhandle": None})
    eventually(lambda: lines_of(path) == [kind])


@pytest.mark.parametrize("kind", list(TYPES))
def test_jobs_message_that_is_not_json_does_not_run_it(cluster: Cluster, kind: str) -> None:
    path = cluster.new_file()
    handle, message = cluster.submit_parked("append", str(path), "body")
    send(cluster, message, kind, body_of(kind, [str(path), kind]), {})
    still_waits(cluster, handle, message, path)


def test_pickle_with_a_job_header_is_not_unpickled(cluster: Cluster) -> None:
    path, made = cluster.new_file(), cluster.new_file()
    handle, message = cluster.submit_parked("append", str(path), "body")
    bomb = pickle.dumps([[Bomb(made), "x"], {}, {}])
    send(cluster, message, "pickle", bomb, {})
    for malformed in ({"id": "x"}, "text", {"id": handle.job_id, "attempt": 9}, [1]):
        send(cluster, message, "pickle", bomb, {"jobhandle": malformed})
    still_waits(cluster, handle, message, path)
    assert not made.exists()


@pytest.mark.parametrize("kind", list(TYPES))
def test_job_header_in_another_place_makes_no_job(cluster: Cluster, kind: str) -> None:
    # Where eager calls have it. Such a message is a plain task's, and its run is no job's.
    path, other = cluster.new_file(), cluster.new_file()
    handle, message = cluster.submit_parked("append", str(path), "body")
    hidden = {"headers": {"jobhandle": {"id": handle.job_id, "attempt": 1}}, "jobhandle": None}
    send(cluster, message, kind, body_of(kind, [str(other), kind]), hidden)
    still_waits(cluster, handle, message, path)


@pytest.mark.parametrize("kind", ["json", *TYPES])
def test_message_of_the_old_protocol_is_no_jobs(cluster: Cluster, kind: str) -> None:
    path = cluster.new_file()
    handle, message = cluster.submit_parked("append", str(path), "body")
    copy = json.loads(message)
    header = copy["headers"]["jobhandle"]
    old = {
        "task": "worker.append",
        "id": copy["headers"]["id"],
        "args": [str(path), "old"],
        "kwargs": {},
        "jobhandle": header,
    }
    if kind == "json":
        body, content = (
            json.dumps(old).encode(),
            {"content-type": "application/json", "content-encoding": "utf-8"},
        )
    elif kind == "pickle":
        body, content = pickle.dumps(old), {"content-type": TYPES[kind], "content-encoding": "binary"}
    else:
        body, content = json.dumps(old).encode(), {"content-type": TYPES[kind], "content-encoding": "utf-8"}
    for headers in ({}, {"jobhandle": header}):
        copy |= {"headers": headers, "body": base64.b64encode(body).decode(), **content}
        copy["properties"]["delivery_tag"] = str(uuid.uuid4())
        copy["properties"]["delivery_info"]["routing_key"] = DEFAULT_QUEUE
        cluster.redis.lpush(DEFAULT_QUEUE, json.dumps(copy))
    still_waits(cluster, handle, message, path)


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "celery.Celery", "tests.apps:append_line", "worker."]
)
def test_message_of_an_unknown_task_runs_nothing(cluster: Cluster, name: str) -> None:
    made = cluster.new_file()
    handle = cluster.submit(name, f"touch {made}")
    cluster.fence()
    eventually(lambda: any("does not know" in event.message for event in cluster.jobs.events(handle.job_id)))
    assert not made.exists()
    assert handle.job_status() is JobStatus.SUBMITTED
    assert handle.cancel_job() is JobStatus.CANCELLED
