"""Flower's configuration for this app: set ``FLOWER_CONF`` to this file."""

from typing import Any

tasks_columns = "uuid,name,state,kwargs,result,worker,received,runtime"


def format_task(task: Any) -> Any:
    """Show the state PROGRESS as STARTED, the state for which Flower has a button to terminate a task."""
    if task.state == "PROGRESS":
        task.state = "STARTED"
    return task
