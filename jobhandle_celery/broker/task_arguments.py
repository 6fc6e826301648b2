"""Checks the arguments of a job against the parameters of its task."""

from typing import Any

from .. import celery_compat
from ..errors import ValidationError
from ..redaction import HIDDEN, unknown


class _Result:
    def __repr__(self) -> str:
        return "<result of another job>"


_RESULT = _Result()
"""Stands for a result still to come, where arguments are shown."""


def checked_arguments(
    task: Any, args: list[Any], kwargs: dict[str, Any], sensitive: list[str | int], results: int
) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments of a call of a task, as Celery passes them.

    Args:
        task: The task.
        args: The arguments, with any value for each result of another job.
        kwargs: The keyword arguments.
        sensitive: Names and positions of sensitive ones: then an error shows none.
        results: How many results of other jobs come first.

    Raises:
        ValidationError: the task does not take them, or has no parameter that `sensitive` names.
    """
    args, kwargs = celery_compat.dump_pydantic_arguments(task, args, kwargs)
    if task.typing and hasattr(task, "__header__"):
        if sensitive:
            of_none, parameters = unknown(sensitive, task.run)
            if of_none:
                accepted = f"parameters of {task.name} ({', '.join(parameters)}), or their positions from 0"
                raise ValidationError("sensitive", of_none, accepted)
        try:
            task.__header__(*args, **kwargs)
        except TypeError as error:
            given = [*[_RESULT] * results, *args[results:]], kwargs
            raise ValidationError(
                "args", HIDDEN if sensitive else given, f"what {task.name} takes ({error})"
            ) from None
    return list(args), dict(kwargs)
