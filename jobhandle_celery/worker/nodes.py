"""Makes the nodes above a member Running, after the claim of the member.

This is not part of the claim, which must not wait for the row of a node, shared by all its members. It may
fail: the settle of the member repeats it.
"""

import logging

from billiard.exceptions import SoftTimeLimitExceeded

from .. import internal_errors
from ..broker.headers import node_of
from ..errors import JobHandleError
from ..runtime import Runtime
from ..store import limit_retries
from .current_run import CurrentRun

logger = logging.getLogger(__name__)

MOST_REMEMBERED = 10_000
"""Nodes that a process remembers as started: further members of these execute no statement."""

RETRY_FOR = 1.0
"""Seconds for which the statement is retried; the body waits for it."""


def start_nodes(runtime: Runtime, current: CurrentRun) -> None:
    """Make the nodes above a member Running, unless this process has done so for its node.

    A resubmit of the root begins another round, in which its nodes are not Running. So the process relies on
    what it remembers only if the message is certainly of the first round.
    """
    place = node_of(current.context)
    if place is None:
        return
    node_id, is_first = place
    if is_first and node_id in runtime.started_nodes:
        return
    job_id = current.run.job_id
    try:
        with limit_retries(RETRY_FOR):
            runtime.store.settling.start_ancestors(job_id, f"worker {current.run.worker.name}")
    except SoftTimeLimitExceeded:
        raise
    except JobHandleError as error:
        logger.warning(
            "job %s: its chain, group or chord is not shown as Running yet: %s",
            job_id,
            error,
        )
    except Exception as error:
        internal_errors.report("starting a tree", error, f"the end of job {job_id} repeats it")
    else:
        if len(runtime.started_nodes) >= MOST_REMEMBERED:
            runtime.started_nodes.clear()
        runtime.started_nodes.add(node_id)
