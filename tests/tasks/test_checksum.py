"""`tasks.checksum` in this process."""

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest


def checksum(path: object, *args: Any) -> Any:
    from tasks.checksum import checksum

    return checksum(os.fsdecode(path), *args)  # type: ignore[arg-type]  # as they come in a message


@pytest.mark.parametrize("algorithm", ["sha256", "md5", "blake2b"])
def test_checksum_is_the_digest_of_all_bytes(tmp_path: Path, algorithm: str) -> None:
    content = os.urandom(3_000_001)
    (tmp_path / "file").write_bytes(content)

    assert checksum(tmp_path / "file", algorithm) == {
        "path": str(tmp_path / "file"),
        "bytes": 3_000_001,
        "digest": hashlib.new(algorithm, content).hexdigest(),
    }


def test_invalid_algorithm_or_path_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="accepted: blake2b"):
        checksum(tmp_path, "shake_128")
    with pytest.raises(ValueError, match="not a regular file"):
        checksum(tmp_path)
    with pytest.raises(ValueError, match="not a regular file"):
        checksum(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match="gone"):
        checksum(tmp_path / "gone")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_read_error_names_the_file() -> None:
    # Not even root can read the first page of a process's memory.
    with pytest.raises(OSError, match="'/proc/self/mem'"):
        checksum("/proc/self/mem")


def test_file_that_changes_while_it_is_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.checksum import ChangedError

    path = tmp_path / "file"
    path.write_bytes(bytes(10))

    def write(*_: Any) -> None:  # between two chunks
        path.write_bytes(bytes(11))

    monkeypatch.setattr("tasks.checksum.ProgressReporter", lambda: write)
    with pytest.raises(ChangedError, match="changed while it was read"):
        checksum(path)
