"""Flower's configuration for this app: ``FLOWER_CONF`` names this file."""

from typing import Any

tasks_columns = "uuid,name,state,kwargs,result,worker,received,runtime"


def format_task(task: Any) -> Any:
    """Show a body that reports progress as what it is, STARTED: only then Flower offers to terminate it."""
    if task.state == "PROGRESS":
        task.state = "STARTED"
    return task
