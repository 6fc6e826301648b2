"""Writes a queue's declaration as JSON and reads it again, so that a publisher need not know the queue."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from kombu import Exchange, Queue, binding


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
