"""A FastAPI service: a request stores a scan and submits its job, in one transaction; a page shows both."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

from celery import Celery
from fastapi import Cookie, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from jobhandle_celery import DatabaseUnavailableError, JobRecord, Jobs, current_job

DATABASE_URL = os.environ.get("DATABASE_URL", "postgresql+psycopg://localhost/scans")
SECONDS_A_PAGE = float(os.environ.get("SECONDS_A_PAGE", "0.5"))
NEWEST = 50

app = Celery("scans", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))
jobs = Jobs(app, DATABASE_URL)
new_session = async_sessionmaker(create_async_engine(DATABASE_URL), expire_on_commit=False)
web = FastAPI()


class Base(DeclarativeBase): ...


class Scan(Base):
    __tablename__ = "scan"

    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(index=True)
    title: Mapped[str]
    pages: Mapped[int]
    job_id: Mapped[int | None]


# The body of the jobs.


@app.task
def read_pages(title: str, pages: int) -> str:
    job = current_job()
    assert job is not None
    for page in range(1, pages + 1):
        job.raise_if_cancelled()
        time.sleep(SECONDS_A_PAGE)
        job.set_progress(page, pages)
        job.set_message(f"page {page} of {pages}")
    return f"{title}: {pages} pages"


# The requests.


async def current_user(user: Annotated[str | None, Cookie()] = None) -> str:
    if not user:
        raise HTTPException(401)
    return user  # your login here


async def session_of_request() -> AsyncIterator[AsyncSession]:
    async with new_session() as session:
        yield session


User = Annotated[str, Depends(current_user)]
Session = Annotated[AsyncSession, Depends(session_of_request)]


class Wish(BaseModel):
    title: str = Field(min_length=1, max_length=100)
    pages: int = Field(ge=1, le=1000)


@web.post("/scans", status_code=202)
async def create(wish: Wish, user: User, session: Session) -> dict[str, int]:
    async with session.begin(), jobs.async_handle(username=user) as handle:
        scan = Scan(owner=user, title=wish.title, pages=wish.pages)
        session.add(scan)
        scan.job_id = await handle.submit(read_pages.s(wish.title, wish.pages), session=session)
        await session.flush()
        return {"id": scan.id}


@web.get("/scans")
async def show_all(user: User, session: Session) -> list[dict[str, object]]:
    wanted = select(Scan).where(Scan.owner == user).order_by(Scan.id.desc()).limit(NEWEST)
    scans = {scan.job_id: scan for scan in await session.scalars(wanted)}
    found = await asyncio.to_thread(jobs.find, ids=scans, username=user)
    return [shown(scans[job.id], job) for job in found]


@web.get("/scans/{scan_id}/events")
async def follow(scan_id: int, user: User, session: Session) -> StreamingResponse:
    scan = await scan_of_user(scan_id, user, session)
    handle = jobs.async_handle(username=user)
    await handle.attach(scan.job_id)

    async def events() -> AsyncIterator[str]:
        async with handle:
            async for job in handle.watch():
                yield f"data: {json.dumps(shown(scan, job))}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


@web.delete("/scans/{scan_id}/job")
async def cancel(scan_id: int, user: User, session: Session) -> dict[str, str]:
    scan = await scan_of_user(scan_id, user, session)
    async with jobs.async_handle(username=user) as handle:
        await handle.attach(scan.job_id)
        return {"status": await handle.cancel_job()}


async def scan_of_user(scan_id: int, user: str, session: AsyncSession) -> Scan:
    scan = await session.scalar(select(Scan).where(Scan.id == scan_id, Scan.owner == user))
    if scan is None or scan.job_id is None:
        raise HTTPException(404)
    await session.close()  # a stream lasts as long as its job: it must not hold a connection
    return scan


def shown(scan: Scan, job: JobRecord) -> dict[str, object]:
    return {
        "id": scan.id,
        "title": scan.title,
        "status": job.status,
        "final": job.status.final,
        "message": job.message,
        "progress": job.progress and job.progress.fraction,
        "result": job.result,
    }


# The page, and a login that believes everybody.


@web.get("/")
async def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("page.html"))


@web.post("/login/{name}")
async def log_in(name: str, response: Response) -> None:
    response.set_cookie("user", name, httponly=True, samesite="strict")


@web.exception_handler(OperationalError)
@web.exception_handler(DatabaseUnavailableError)
async def unavailable(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": "try again later"}, 503)


async def create_tables() -> None:
    """Create the tables of the service; those of the jobs are made by `celery -A scans jobs upgrade`."""
    async with new_session() as session, session.begin():
        await session.run_sync(lambda sync: Base.metadata.create_all(sync.connection()))


if __name__ == "__main__":
    asyncio.run(create_tables())
