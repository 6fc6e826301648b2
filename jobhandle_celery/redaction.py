"""Which arguments are not for show. Imports nothing of ours.

A list of names of parameters; of positions, counted from 0; and ``"*"`` for all that are given by position.
What is hidden is hidden from those who look on (Flower, logs, events, error texts, the command line), not
from the owner of the database or of the broker, nor from the body.
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

HIDDEN = "***"
ALL_POSITIONS = "*"


def masked(
    args: Sequence[Any], kwargs: Mapping[str, Any], sensitive: Collection[str | int]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments as they may be shown: whole values are replaced, whatever is in them."""
    hides_all = ALL_POSITIONS in sensitive
    return (
        tuple(HIDDEN if hides_all or place in sensitive else value for place, value in enumerate(args)),
        {name: HIDDEN if name in sensitive else value for name, value in kwargs.items()},
    )


def resolved(
    sensitive: Collection[str | int], function: Callable[..., Any] | None, args: Sequence[Any]
) -> list[str | int]:
    """Add the positions of those named arguments that are given by position.

    All of them, where it is not known which is which: the function is not known, or takes any number.
    """
    found = list(dict.fromkeys(sensitive))
    if not args or not any(isinstance(one, str) for one in found):
        return found
    try:
        if function is None:
            return [*found, ALL_POSITIONS]
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return [*found, ALL_POSITIONS]
    for place, parameter in enumerate(parameters):
        if parameter.name not in found or place in found:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            found.append(ALL_POSITIONS)
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            found.append(place)
    return found
