"""The options of a job's messages as its row keeps them, in JSON.

What differs from job to job comes first: jobs that have the rest in common have one template of messages. The
declaration of the queue is among the options, so that a publisher need not know the queue.
"""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from kombu import Exchange, Queue, binding

from .. import serialization

_OWN = ("tree", "headers")
"""The place in a canvas, and the custom headers, of which tracers give each job its own."""

_FIRST = {name: f'{{"{name}": ' for name in _OWN}
_decoder = json.JSONDecoder()


def join(
    options: str, *, tree: Mapping[str, Any] | None = None, headers: Mapping[str, Any] | None = None
) -> str:
    """Add a job's own options to those that are in JSON already."""
    for name, value in (("headers", headers), ("tree", tree)):
        if value:
            separator = "" if options == "{}" else ", "
            own = serialization.encode_given("options", value)
            options = f"{_FIRST[name]}{own}{separator}{options.removeprefix('{')}"
    return options


def split(options: str) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
    """Return the common options in JSON, the place in a canvas, and the custom headers."""
    own: list[Mapping[str, Any]] = []
    for first in _FIRST.values():
        value: Mapping[str, Any] = {}
        if options.startswith(first):
            value, end = _decoder.raw_decode(options, len(first))
            if '"__type__"' in options:
                value = serialization.decode(options[len(first) : end])
            options = "{" + options[end:].removeprefix(", ")
        own.append(value)
    return options, own[0], own[1]


def described(queue: Queue) -> dict[str, Any]:
    """Return each attribute of a queue that differs from kombu's default."""
    described = _different(queue.as_dict(recurse=True), Queue)
    if described.get("exchange"):
        described["exchange"] = _different(described["exchange"], Exchange)
    if described.get("bindings"):
        described["bindings"] = [
            {**bound, "exchange": _different(bound["exchange"], Exchange)} for bound in described["bindings"]
        ]
    return described


def _different(attributes: Mapping[str, Any], kind: type) -> dict[str, Any]:
    defaults = _defaults(kind)
    return {
        name: value for name, value in attributes.items() if name == "name" or value != defaults.get(name)
    }


@cache
def _defaults(kind: Any) -> Mapping[str, Any]:
    made: Mapping[str, Any] = kind().as_dict(recurse=True)
    return made


def declared(record: Mapping[str, Any]) -> Queue:
    """Return the queue that a record describes."""
    exchange: Any = record.get("exchange")
    attributes = {**record, "exchange": None if exchange is None else Exchange(**exchange)}
    if "bindings" in record:
        attributes["bindings"] = [
            binding(**{**bound, "exchange": Exchange(**bound["exchange"])}) for bound in record["bindings"]
        ]
    return Queue(**attributes)
