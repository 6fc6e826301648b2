"""The benchmarks, by file; each has a function that takes a `Harness` and returns a `Result`."""

from collections.abc import Callable

from ..harness import Harness
from ..result import Result
from . import (
    bulk,
    calls,
    connections,
    coroutines,
    distance,
    event_loop,
    growth,
    idle,
    latency,
    memory,
    pools,
    profile,
    rows,
    submit,
    submit_many,
    trees,
    waiting,
    worker,
)

ALL: dict[str, Callable[[Harness], Result]] = {
    "submit": submit.run,
    "calls": calls.run,
    "submit_many": submit_many.run_redis,
    "submit_many_rabbitmq": submit_many.run_rabbitmq,
    "worker": worker.run,
    "pools": pools.run,
    "latency": latency.run,
    "distance": distance.run,
    "waiting": waiting.run,
    "coroutines": coroutines.run,
    "connections": connections.run,
    "event_loop": event_loop.run,
    "rows": rows.run,
    "idle": idle.run,
    "cancel_many": bulk.run_cancel,
    "due": bulk.run_due,
    "trees": trees.run,
    "memory": memory.run,
    "growth": growth.run,
    "profile": profile.run,
}
"""The benchmarks by name, in the order of the report."""
