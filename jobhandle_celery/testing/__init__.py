"""A test kit for services that use this library: jobs without a broker, a worker or the service's database.

pytest loads `plugin`, which has the fixtures; `JobsKit` is what the fixture ``jobs`` returns.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .kit import JobsKit

__all__ = ["JobsKit"]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        # pytest imports this package in every run, also of projects whose tests use no job.
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from .kit import JobsKit

        return JobsKit
