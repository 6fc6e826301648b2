"""The progress that a body reports as Celery's documentation shows it, by a custom state."""

import logging
from collections.abc import Mapping
from typing import Any

from celery import states

from ..errors import DatabaseUnavailableError
from ..handle import JobHandle
from ..validation import finite

logger = logging.getLogger(__name__)

_MESSAGES = ("message", "status")
"""Keys of a text for people."""


def keep_progress(handle: JobHandle, state: Any, meta: Any) -> None:
    """Write what a body has passed to `update_state` into its row, where that has a place for it.

    That is a number ``current`` of a custom state, with ``total`` and a message. A body continues while the
    database is unavailable.
    """
    if state in states.ALL_STATES or not isinstance(meta, Mapping) or finite(meta.get("current")) is None:
        return
    message = next((meta[key] for key in _MESSAGES if isinstance(meta.get(key), str)), None)
    if message is not None:
        try:
            handle.set_message(message)
        except DatabaseUnavailableError as error:
            logger.warning(
                "job %s: a message was not recorded (%s); the body continues", handle.job_id, error
            )
    total = meta.get("total")
    # Written last: a reader of the progress then has the message.
    handle.set_progress(meta["current"], None if finite(total) is None else total)
