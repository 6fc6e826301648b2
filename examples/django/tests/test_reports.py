import pytest
from reports.models import Report
from reports.tasks import write_report


@pytest.fixture
def ann(django_user_model, client):
    ann = django_user_model.objects.create_user("ann")
    client.force_login(ann)
    return ann


@pytest.fixture
def create(ann, client, jobs, django_capture_on_commit_callbacks):
    """Send the request for a report; the test's own transaction never commits."""

    def create(month):
        with django_capture_on_commit_callbacks(execute=True):
            answer = client.post("/reports/", {"month": month})
        assert answer.status_code == 202
        return f"/reports/{answer.json()['id']}/"

    return create


def test_report_is_written(create, client, jobs):
    url = create("2030-05")
    jobs.assert_submitted(write_report, username="ann")
    assert client.get(url).json() == {"status": "Queued", "progress": None, "text": ""}

    jobs.run_jobs()
    report = client.get(url).json()
    assert (report["status"], report["progress"]) == ("Finished", 1)
    assert report["text"].startswith("2030-05, week 1: ")


def test_nothing_is_submitted_before_the_commit(ann, client, jobs):
    client.post("/reports/", {"month": "2030-05"})
    jobs.refute_submitted(write_report)


def test_report_that_is_cancelled_is_not_written(create, client, jobs):
    url = create("2030-05")
    assert client.delete(url).json()["status"] == "Cancelled"
    assert jobs.run_jobs() == []
    assert Report.objects.get().text == ""


def test_report_whose_worker_is_lost_is_in_error(create, client, jobs, lose_worker):
    url = create("2030-05")
    lose_worker(jobs.assert_submitted(write_report).id)
    assert client.get(url).json()["status"] == "Error"


def test_report_of_another_user_is_not_found(create, client, django_user_model):
    url = create("2030-05")
    client.force_login(django_user_model.objects.create_user("bob"))
    assert client.get(url).status_code == 404
    client.logout()
    assert client.get(url).status_code == 401
