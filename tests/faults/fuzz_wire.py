"""Messages that no client of this library sends, and a cluster whose worker receives them.

A `Forgery` is plain data that Hypothesis draws; `Wire.forge` makes bytes of it, from the true message of a
job that waits for it, and puts them into the worker's queue.
"""

import base64
import json
import sqlite3
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import sqlalchemy
from hypothesis import strategies as st

from jobhandle_celery import JobHandle
from tests.support import eventually, prune_ended
from tests.worker.cluster import DEFAULT_QUEUE, Cluster

QUIET = {"jobhandle_republish_after": 3600}
"""Settings of a cluster where no job is republished after its message was rejected."""


@dataclass(frozen=True)
class Of:
    """Placeholder of a number of the target's, or of another job's, plus an offset."""

    what: str
    plus: int = 0


@dataclass(frozen=True)
class Forgery:
    """The differences of a forged message from a job's own."""

    target: str
    header: Any = field(default_factory=lambda: {"id": Of("id"), "attempt": Of("attempt")})
    headers: Mapping[str, Any] = field(default_factory=dict)
    body: bytes | None = None
    cut: int | None = None
    content: Mapping[str, Any] = field(default_factory=dict)


TARGETS = ["parked", "held", "later", "finished", "failed", "cancelled", "pruned", "claimed"]
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NUMBERS = (
    JSON
    | st.sampled_from(
        [
            True,
            False,
            -1,
            0,
            2**31,
            2**63,
            10**40,
            1.0,
            "1",
            "1; DROP TABLE jobhandle_job",
            [1],
            {"id": 1},
            None,
        ]
    )
    | st.builds(Of, st.sampled_from(["id", "other", "attempt"]), st.integers(-2, 2))
)
HEADERS = (
    JSON
    | st.fixed_dictionaries({}, optional={"id": NUMBERS, "attempt": NUMBERS, "more": JSON})
    | st.fixed_dictionaries({"id": st.just(Of("id")), "attempt": NUMBERS})
)
DECORATIONS = st.fixed_dictionaries(
    {},
    optional={
        "eta": st.sampled_from(["2001-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"]),
        "expires": st.sampled_from(["2001-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"]),
        "chain": st.just([]),
        "retries": st.integers(0, 3),
        "redelivered": st.booleans(),
        "shadow": st.text(max_size=4),
        "argsrepr": st.text(max_size=4),
        "group": st.just("a-group"),
        "headers": JSON,
    },
)
WRONG_NAMES = st.sampled_from(
    ["worker.add", "worker.same", "worker.nobody_knows", "os.system", "builtins.eval"]
)
CONTENTS = st.fixed_dictionaries(
    {
        "content-type": st.sampled_from(
            [
                *(
                    "application/x-python-serialize",
                    "application/x-yaml",
                    "application/x-msgpack",
                    "text/plain",
                ),
                *("application/data", "application/text", "application/jsonx", "", "pickle"),
            ]
        )
    },
    optional={"content-encoding": st.sampled_from(["binary", "utf-8", "base64"])},
)


def _shape(body: Any) -> bytes:
    return json.dumps(body).encode()


def _is_no_body(value: Any) -> bool:
    return not (isinstance(value, list) and len(value) == 3)


BODIES = (
    st.binary(max_size=30)
    | JSON.filter(_is_no_body).map(_shape)
    | st.sampled_from(
        [
            b"",
            b"null",
            b"5",
            b"[]",
            b"[[]]",
            b"[[], {}]",
            b'"abc"',
            b"{}",
            b'{"args": []}',
            b"[5, 5, 5]",
            b"[[], [], []]",
            b"\x80\x04K\x05.",
        ]
    )
)

FORGERIES = st.one_of(
    # No job that waits for this message has this header.
    st.builds(Forgery, st.sampled_from(TARGETS), header=HEADERS, headers=DECORATIONS),
    # A valid header, for a job that waits for no message.
    st.builds(Forgery, st.sampled_from(TARGETS[1:]), headers=DECORATIONS),
    # Another task's name, or another message's id, with a valid header.
    st.builds(Forgery, st.sampled_from(TARGETS), headers=st.builds(dict, task=WRONG_NAMES)),
    st.builds(Forgery, st.sampled_from(TARGETS), headers=st.builds(dict, id=st.uuids().map(str))),
    # The body is malformed, or not JSON.
    st.builds(Forgery, st.sampled_from(TARGETS), body=BODIES),
    st.builds(Forgery, st.sampled_from(TARGETS), cut=st.integers(0, 60)),
    st.builds(Forgery, st.sampled_from(TARGETS), content=CONTENTS),
)


class Passes:
    """The sweep's passes, which a worker makes after it has flushed its events."""

    def __init__(self, cluster: Cluster) -> None:
        database = sqlalchemy.make_url(cluster.database_url).database
        assert database is not None
        self.rows = sqlite3.connect(database, timeout=10, isolation_level=None)

    def wait(self) -> None:
        """Return after two passes."""
        for _ in range(2):
            last = self._last()
            eventually(partial(self._is_after, last), message="no pass of the sweep")

    def _is_after(self, last: Any) -> bool:
        return bool(self._last() != last)

    def _last(self) -> Any:
        return self.rows.execute("SELECT max(last_pass_at) FROM jobhandle_sweep").fetchone()


class Wire:
    """One job in each state, and the worker that receives forged messages for them."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.lines = cluster.new_file()
        self.sent = 0
        self._ids: dict[str, int] = {}
        self._attempts: dict[str, int] = {}
        self._templates: dict[str, dict[str, Any]] = {}
        self._passes = Passes(cluster)
        self._rows = self._passes.rows
        self._prepare()

    def close(self) -> None:
        self._rows.close()

    def rows(self) -> dict[str, list[Any]]:
        """Return every row of every job and event."""
        return {
            table: self._rows.execute(f"SELECT * FROM {table} ORDER BY id").fetchall()
            for table in ("jobhandle_job", "jobhandle_job_event")
        }

    def wait_until_final(self) -> None:
        """Return when the worker has processed the messages and written their events."""
        self.cluster.fence()
        self._passes.wait()

    def forge(self, forgery: Forgery) -> None:
        """Put a forged message into the worker's queue."""
        message = json.loads(json.dumps(self._templates[forgery.target]))
        header = self._numbers(forgery.header, forgery.target)
        if self._is_true(header, forgery):
            header = {"id": "true"}
        message["headers"].update(forgery.headers)
        message["headers"]["jobhandle"] = header
        body = base64.b64decode(message["body"]) if forgery.body is None else forgery.body
        if forgery.cut is not None:
            body = body[: min(forgery.cut, len(body) - 1)]
        message["body"] = base64.b64encode(body).decode()
        message.update(forgery.content)
        message["properties"]["delivery_tag"] = str(uuid.uuid4())
        message["properties"]["delivery_info"]["routing_key"] = DEFAULT_QUEUE
        self.cluster.redis.lpush(DEFAULT_QUEUE, json.dumps(message))
        self.sent += 1

    def _is_true(self, header: Any, forgery: Forgery) -> bool:
        """Return whether the drawn numbers are those of the waiting job, in a valid message."""
        if (
            forgery.target != "parked"
            or forgery.body is not None
            or forgery.cut is not None
            or forgery.content
        ):
            return False
        if {"task", "id"} & set(forgery.headers):
            return False
        true = {"id": self._ids["parked"], "attempt": self._attempts["parked"]}
        return isinstance(header, dict) and {name: header.get(name) for name in true} == true

    def _numbers(self, given: Any, target: str) -> Any:
        if isinstance(given, Of):
            number = {
                "id": self._ids[target],
                "other": self._ids["held" if target == "parked" else "parked"],
                "attempt": self._attempts[target],
            }[given.what]
            return number + given.plus
        if isinstance(given, dict):
            return {name: self._numbers(value, target) for name, value in given.items()}
        return given

    def _prepare(self) -> None:
        cluster = self.cluster
        self._know("pruned", *self._parked(), lambda handle: handle.cancel_job())
        prune_ended(cluster.jobs)
        self._know("finished", *self._parked("tells"), self._run)
        self._know("failed", *self._parked("tells"), lambda handle: _end_by_hand(handle, "Error"))
        self._know("cancelled", *self._parked(), lambda handle: handle.cancel_job())
        self._know("claimed", *self._parked(), lambda handle: handle.set_status("Running"))
        self._know("parked", *self._parked(), lambda handle: None)
        template = self._templates["parked"]
        waiting: dict[str, dict[str, Any]] = {
            "held": {"status": "Waiting"},
            "later": {"scheduled_for": timedelta(hours=9)},
        }
        for target, fields in waiting.items():
            handle = cluster.submit("append", str(self.lines), target, **fields)
            job = handle.get_job()
            headers = {**template["headers"], "id": job.task_id}
            self._ids[target], self._attempts[target] = handle.job_id, 1
            self._templates[target] = {**template, "headers": headers}
        self.forge(Forgery("cancelled"))  # this one is reported to Celery, and the row records that
        self.wait_until_final()

    def _parked(self, text: str = "body") -> tuple[JobHandle, bytes]:
        return self.cluster.submit_parked("append", str(self.lines), text)

    def _know(self, target: str, handle: JobHandle, message: bytes, then: Callable[[JobHandle], Any]) -> None:
        self._templates[target] = json.loads(message)
        self._ids[target], self._attempts[target] = handle.job_id, 1
        then(handle)

    def _run(self, handle: JobHandle) -> None:
        self.cluster.deliver(json.dumps(self._templates["finished"]).encode())
        handle.wait(20)
        eventually(lambda: self.cluster.meta(handle.get_job().task_id), message="its result")
        self.lines.unlink()


def _end_by_hand(handle: JobHandle, status: str) -> None:
    handle.set_status("Running")
    handle.set_status(status)
