"""The benchmarks, one a file, each with a `run` that takes a stage and returns what it found."""

from collections.abc import Callable

from ..result import Result
from ..stage import Stage
from . import submit, submit_many, worker

ALL: dict[str, Callable[[Stage], Result]] = {
    "submit": submit.run,
    "submit_many": submit_many.run_redis,
    "submit_many_rabbitmq": submit_many.run_rabbitmq,
    "worker": worker.run,
}
"""By name, in the order of the report."""
