import asyncio
import json

import pytest
import scans
from fastapi.testclient import TestClient
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool


@pytest.fixture
def client(jobs, monkeypatch):
    """A client in which ann has logged in; the tables of the service are in the database of the test."""
    url = jobs.database_url.replace("sqlite:", "sqlite+aiosqlite:")
    engine = create_async_engine(url, poolclass=NullPool)
    monkeypatch.setattr(scans, "new_session", async_sessionmaker(engine, expire_on_commit=False))
    monkeypatch.setattr(scans, "SECONDS_A_PAGE", 0)
    asyncio.run(scans.create_tables())
    with TestClient(scans.web, cookies={"user": "ann"}) as client:
        yield client


def create(client, pages=3):
    answer = client.post("/scans", json={"title": "Atlas", "pages": pages})
    assert answer.status_code == 202
    return answer.json()["id"]


def test_scan_is_read(client, jobs):
    create(client)
    jobs.assert_submitted(scans.read_pages, args=["Atlas", 3], username="ann")
    (scan,) = client.get("/scans").json()
    assert (scan["title"], scan["status"], scan["progress"]) == ("Atlas", "Queued", None)

    jobs.run_jobs()
    (scan,) = client.get("/scans").json()
    assert (scan["status"], scan["progress"], scan["result"]) == ("Finished", 1, "Atlas: 3 pages")


def test_stream_ends_with_the_job(client, jobs):
    scan_id = create(client)
    jobs.run_jobs()
    answer = client.get(f"/scans/{scan_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    (event,) = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line]
    assert (event["status"], event["message"], event["final"]) == ("Finished", "page 3 of 3", True)


def test_wrong_wish_submits_nothing(client, jobs):
    assert client.post("/scans", json={"title": "Atlas", "pages": 0}).status_code == 422
    jobs.refute_submitted(scans.read_pages)
    assert client.get("/scans").json() == []


def test_cancelled_scan_is_not_read(client, jobs):
    scan_id = create(client)
    assert client.delete(f"/scans/{scan_id}/job").json() == {"status": "Cancelled"}
    assert jobs.run_jobs() == []


def test_scans_of_others_are_not_found(client):
    scan_id = create(client)
    client.cookies.set("user", "bob")
    assert client.get("/scans").json() == []
    assert client.get(f"/scans/{scan_id}/events").status_code == 404
    assert client.delete(f"/scans/{scan_id}/job").status_code == 404
    client.cookies.clear()
    assert client.get("/scans").status_code == 401


def test_service_says_so_while_the_database_is_away(client, database_away):
    scan_id = create(client)
    with database_away():
        assert client.delete(f"/scans/{scan_id}/job").status_code == 503
