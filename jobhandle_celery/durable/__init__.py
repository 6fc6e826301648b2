"""Durable tasks: Celery's own calls (``delay``, ``apply_async``, ``send_task``) submit jobs."""
