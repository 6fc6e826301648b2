"""The demo's app as it is configured in this process, and a folder of programs for its scripts."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module", autouse=True)
def _configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Configure the app of this process before anything does: nothing is to appear in the current folder."""
    folder = tmp_path_factory.mktemp("tasks-app")
    (folder / "scripts").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOBHANDLE_DATABASE_URL", f"sqlite:///{folder}/jobs.sqlite3")
        patch.setenv("JOBHANDLE_BROKER_URL", "memory://")
        from tasks import app

        assert app.conf.broker_url == "memory://"
        yield


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder whose programs may be run by a task that is called in this process."""
    from tasks import app

    folder = tmp_path / "scripts"
    folder.mkdir()
    monkeypatch.setitem(app.conf, "scripts_folder", str(folder))
    return folder
