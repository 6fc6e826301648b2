"""A Flask service: a request stores an album and submits its jobs, in one transaction."""

import os

from celery import Celery, chord
from flask import Flask, abort, request
from sqlalchemy import create_engine, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from jobhandle_celery import DatabaseUnavailableError, Jobs, current_job

DATABASE_URL = os.environ.get("DATABASE_URL", "postgresql+psycopg://localhost/albums")

app = Celery("albums", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))
jobs = Jobs(app, DATABASE_URL)
engine = create_engine(DATABASE_URL)
web = Flask(__name__)


class Base(DeclarativeBase): ...


class Album(Base):
    __tablename__ = "album"

    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]
    title: Mapped[str]
    sheet: Mapped[str | None]
    job_id: Mapped[int | None]


# The bodies of the jobs.


@app.task
def thumbnail(picture):
    if not picture.endswith(".tif"):
        raise ValueError(f"{picture} is not a picture")
    return f"{picture} (96 px)"


@app.task
def contact_sheet(thumbnails, album_id):
    job = current_job()
    job.raise_if_cancelled()
    job.set_message(f"{len(thumbnails)} pictures")
    with Session(engine) as session, session.begin():
        album = session.get_one(Album, album_id)
        album.sheet = f"{album.title}: {', '.join(thumbnails)}"


# The requests.


def current_user():
    return request.headers.get("X-User") or abort(401)  # your login here


@web.post("/albums")
def create():
    user, wish = current_user(), request.get_json()
    with Session(engine) as session, session.begin():
        album = Album(owner=user, title=wish["title"])
        session.add(album)
        session.flush()
        thumbnails = [thumbnail.s(picture) for picture in wish["pictures"]]
        album.job_id = jobs.submit(
            chord(thumbnails, contact_sheet.s(album.id)), username=user, session=session
        )
        return {"id": album.id}, 202


@web.get("/albums/<int:album_id>")
def show(album_id):
    album = album_of_user(album_id)
    with jobs.attach(album.job_id, username=album.owner) as handle:
        job = handle.get_job()
    return {
        "title": album.title,
        "sheet": album.sheet,
        "status": job.status,
        "message": job.message,
        "progress": job.progress and job.progress.fraction,
    }


@web.delete("/albums/<int:album_id>/job")
def cancel(album_id):
    album = album_of_user(album_id)
    with jobs.attach(album.job_id, username=album.owner) as handle:
        return {"status": handle.cancel_job()}


def album_of_user(album_id):
    with Session(engine, expire_on_commit=False) as session:
        wanted = select(Album).where(Album.id == album_id, Album.owner == current_user())
        return session.scalar(wanted) or abort(404)


@web.errorhandler(OperationalError)
@web.errorhandler(DatabaseUnavailableError)
def unavailable(_):
    return {"error": "try again later"}, 503


@web.cli.command()
def create_tables():
    """Create the tables of the service; those of the jobs are made by `celery -A albums jobs upgrade`."""
    Base.metadata.create_all(engine)
