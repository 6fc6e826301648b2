import albums
import pytest
from sqlalchemy import create_engine

ANN = {"X-User": "ann"}


@pytest.fixture
def client(jobs, monkeypatch):
    """A client of the service, whose tables are in the database of the test."""
    engine = create_engine(jobs.database_url)
    albums.Base.metadata.create_all(engine)
    monkeypatch.setattr(albums, "engine", engine)
    yield albums.web.test_client()
    engine.dispose()


def create(client, *pictures):
    answer = client.post("/albums", json={"title": "Holidays", "pictures": pictures}, headers=ANN)
    assert answer.status_code == 202
    return f"/albums/{answer.json['id']}"


def test_sheet_is_made_of_all_pictures(client, jobs):
    url = create(client, "a.tif", "b.tif")
    jobs.assert_submitted(albums.thumbnail, args=["b.tif"], username="ann")
    assert client.get(url, headers=ANN).json["progress"] == 0

    jobs.run_jobs()
    album = client.get(url, headers=ANN).json
    assert (album["status"], album["progress"]) == ("Finished", 1)
    assert album["sheet"] == "Holidays: a.tif (96 px), b.tif (96 px)"


def test_picture_that_cannot_be_read_fails_the_album(client, jobs):
    url = create(client, "a.tif", "b.txt")
    jobs.run_jobs()
    album = client.get(url, headers=ANN).json
    assert (album["status"], album["sheet"]) == ("Error", None)
    assert "b.txt is not a picture" in album["message"]


def test_worker_that_is_lost_fails_the_album(client, jobs, lose_worker):
    url = create(client, "a.tif", "b.tif")
    lose_worker(jobs.assert_submitted(albums.thumbnail, args=["a.tif"]).id)
    jobs.run_jobs()
    assert client.get(url, headers=ANN).json["status"] == "Error"


def test_cancelled_album_is_not_made(client, jobs):
    url = create(client, "a.tif")
    assert client.delete(f"{url}/job", headers=ANN).json == {"status": "Cancelled"}
    assert jobs.run_jobs() == []
    assert client.get(url, headers=ANN).json["sheet"] is None


def test_albums_of_others_are_not_found(client):
    url = create(client, "a.tif")
    assert client.get(url, headers={"X-User": "bob"}).status_code == 404
    assert client.delete(f"{url}/job", headers={"X-User": "bob"}).status_code == 404
    assert client.get(url).status_code == 401


def test_service_says_so_while_the_database_is_away(client, database_away):
    url = create(client, "a.tif")
    with database_away():
        assert client.get(url, headers=ANN).status_code == 503
