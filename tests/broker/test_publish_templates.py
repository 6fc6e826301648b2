"""A recording is split where each placeholder is once."""

import pytest

from jobhandle_celery.broker.publish_templates import SplitRecording

MARKS = {b"<a>": "a", b"<b>": "b"}


def test_recording_is_filled_with_the_values_of_its_fields() -> None:
    split = SplitRecording.at(b"0<b>1<a>2", MARKS)
    assert split is not None
    assert [split.fill({"a": value, "b": b"x"}) for value in (b"", b"<b>")] == [b"0x12", b"0x1<b>2"]


@pytest.mark.parametrize("recorded", [b"<a>", b"<a><b><a>"])
def test_recording_without_each_placeholder_once_is_none(recorded: bytes) -> None:
    assert SplitRecording.at(recorded, MARKS) is None
