"""Its tasks, which use Django's ORM."""

from typing import Any

import celery

from jobhandle_celery import current_job
from tests.ecosystem.django_site.models import Order

shared_task: Any = celery.shared_task


def make_thumbnail(order_id: int) -> str:
    """Change a row of Django's; return its path, and whether this is a job."""
    order = Order.objects.get(id=order_id)
    order.thumbnails += 1
    order.save()
    job = current_job()
    return f"{order.path}, {'a task' if job is None else f'job {job.job_id}'}"


thumbnail = shared_task(name="site.thumbnail", durable=True)(make_thumbnail)
plain_thumbnail = shared_task(name="site.plain_thumbnail")(make_thumbnail)
