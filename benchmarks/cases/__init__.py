"""The benchmarks, one a file, each with a `run` that takes a stage and returns what it found."""

from collections.abc import Callable

from ..result import Result
from ..stage import Stage
from . import submit

ALL: dict[str, Callable[[Stage], Result]] = {
    "submit": submit.run,
}
"""By name, in the order of the report."""
