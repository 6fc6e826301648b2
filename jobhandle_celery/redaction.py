"""Hides sensitive arguments in Flower, logs, events, errors and the command line.

Sensitive arguments are named by parameter, by position from 0, or by ``"*"``: all positional ones. The row
and the message hold their values, which the body needs.
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

HIDDEN = "***"
ALL_POSITIONS = "*"


def masked(
    args: Sequence[Any], kwargs: Mapping[str, Any], sensitive: Collection[str | int]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with sensitive values replaced."""
    hides_all = ALL_POSITIONS in sensitive
    return (
        tuple(HIDDEN if hides_all or place in sensitive else value for place, value in enumerate(args)),
        {name: HIDDEN if name in sensitive else value for name, value in kwargs.items()},
    )


def shifted(sensitive: Sequence[str | int]) -> Sequence[str | int]:
    """Return what to hide of arguments before which results are missing: positions are unknown."""
    return [*sensitive, ALL_POSITIONS] if any(type(name) is int for name in sensitive) else sensitive


def unknown(
    sensitive: Collection[str | int], function: Callable[..., Any]
) -> tuple[list[str | int], list[str]]:
    """Return which names and positions are of no parameter of a function, and the names of its parameters."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return [], []
    kinds = [parameter.kind for parameter in parameters]
    names = [parameter.name for parameter in parameters]
    places = sum(kind in _POSITIONAL for kind in kinds)
    any_name = inspect.Parameter.VAR_KEYWORD in kinds
    any_place = inspect.Parameter.VAR_POSITIONAL in kinds
    return [
        given
        for given in sensitive
        if given != ALL_POSITIONS
        and not (any_name or given in names if isinstance(given, str) else any_place or given < places)
    ], names


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def resolved(
    sensitive: Collection[str | int], function: Callable[..., Any] | None, args: Sequence[Any]
) -> list[str | int]:
    """Add the positions of named arguments that are given by position.

    All positions, if the function is unknown or takes any number of them.
    """
    found = list(dict.fromkeys(sensitive))
    if not args or not any(isinstance(name, str) for name in found):
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
        elif parameter.kind in _POSITIONAL:
            found.append(place)
    return found
