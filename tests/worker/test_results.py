"""Results are stored as JSON with their types; others end the job in Error with the reason."""

import datetime
import decimal
import uuid
from collections.abc import Iterator

import pytest

from jobhandle_celery import JobStatus
from jobhandle_celery.serialization import LIMIT
from tests.worker.site import NewSite, Site


@pytest.fixture(scope="module", params=["postgresql", "sqlite"])
def site(request: pytest.FixtureRequest, module_site: NewSite) -> Iterator[Site]:
    site = module_site(database=request.param)
    site.start(pool="solo")
    yield site
    site.close()  # the next one has the same broker


def test_values_keep_their_types(site: Site) -> None:
    assert site.submit("rich_result").result(timeout=20) == {
        "moment": datetime.datetime(2024, 2, 29, 12, 30, 15, 250000, tzinfo=datetime.UTC),
        "day": datetime.date(2024, 2, 29),
        "uuid": uuid.UUID(int=7),
        "decimal": decimal.Decimal("3.1400"),
        "bytes": b"\x00\xff",
        "nested": [{"list": [1, 2.5, None, True, "ünï€"]}],
    }


def test_arguments_keep_their_types(site: Site) -> None:
    given = [
        datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC),
        uuid.UUID(int=7),
        decimal.Decimal("3.1400"),
        b"\x00\xff",
    ]

    assert site.submit("same", given).result(timeout=20) == given


def test_result_at_the_size_limit_is_stored(site: Site) -> None:
    length = LIMIT - len('""')

    assert len(site.submit("result_of_length", length).result(timeout=20)) == length


@pytest.mark.parametrize(
    ("task", "arguments", "words"),
    [
        ("result_of_length", [LIMIT], "more than 1,048,576"),
        ("unserialisable_result", [], "is not JSON"),
        ("result_holding_itself", [], "is not JSON"),
    ],
)
def test_result_that_cannot_be_stored_ends_in_error(
    site: Site, task: str, arguments: list[int], words: str
) -> None:
    handle = site.submit(task, *arguments)

    assert handle.wait(20) is JobStatus.ERROR
    error = handle.get_job().error
    assert error is not None
    assert "the result" in error.message
    assert words in error.message
    assert error.message in handle.job_message()
    assert site.submit("add", 20, 22).result(timeout=20) == 42
