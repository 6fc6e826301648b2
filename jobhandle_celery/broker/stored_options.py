"""The options of a job's messages as its row keeps them, in JSON: what differs from job to job comes first.

Jobs that have the rest in common have one template of messages.
"""

import json
from collections.abc import Mapping
from typing import Any

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
