"""The ways to submit jobs of a task; each returns the ids of its jobs."""

import asyncio
from collections.abc import Callable

from celery import chain
from sqlalchemy.orm import Session

from jobhandle_celery import Job
from tests.ecosystem.service import Service

Way = Callable[[Service, str], list[int]]


def submit(service: Service, task: str) -> list[int]:
    return [service.jobs.submit(Job(task=task))]


def submit_many(service: Service, task: str) -> list[int]:
    return list(service.jobs.submit_many([Job(task=task), Job(task=task)]))


def submit_in_session(service: Service, task: str) -> list[int]:
    engine = service.jobs._runtime.store.database.engine
    with Session(engine) as session:
        job_id = service.jobs.submit(Job(task=task), session=session)
        session.commit()
    return [job_id]


def submit_chain(service: Service, task: str) -> list[int]:
    root = service.jobs.submit(chain(*[service.app.signature(task, immutable=True) for _ in range(3)]))
    return [member.id for member in service.jobs.find(root=root) if member.kind is None]


def submit_in_event_loop(service: Service, task: str) -> list[int]:
    async def submit() -> int:
        async with service.jobs.async_handle() as handle:
            return int(await handle.submit(Job(task=task)))

    job_ids = [asyncio.run(submit())]
    service.jobs._runtime.submitter.drain()  # a thread publishes for an event loop
    return job_ids


def delay(service: Service, task: str) -> list[int]:
    service.app.tasks[task].durable = True
    return [service.app.tasks[task].delay().job_id]


WAYS: list[Way] = [submit, submit_many, submit_in_session, submit_in_event_loop, submit_chain, delay]
