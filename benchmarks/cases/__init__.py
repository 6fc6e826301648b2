"""The benchmarks, one a file, each with a `run` that takes a stage and returns what it found."""

from collections.abc import Callable

from ..result import Result
from ..stage import Stage
from . import (
    connections,
    crowds,
    event_loop,
    growth,
    idle,
    latency,
    memory,
    profile,
    rows,
    submit,
    submit_many,
    trees,
    waiting,
    worker,
)

ALL: dict[str, Callable[[Stage], Result]] = {
    "submit": submit.run,
    "submit_many": submit_many.run_redis,
    "submit_many_rabbitmq": submit_many.run_rabbitmq,
    "worker": worker.run,
    "latency": latency.run,
    "waiting": waiting.run,
    "connections": connections.run,
    "event_loop": event_loop.run,
    "rows": rows.run,
    "idle": idle.run,
    "cancel_many": crowds.run_cancel,
    "due": crowds.run_due,
    "trees": trees.run,
    "memory": memory.run,
    "growth": growth.run,
    "profile": profile.run,
}
"""By name, in the order of the report."""
