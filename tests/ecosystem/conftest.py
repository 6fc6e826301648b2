"""The modules of this folder are imported only where they are asked for."""

import re
from pathlib import Path

import pytest

_SELECTED = re.compile(r"(?<!not )\becosystem\b")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no module unless the marker is selected: other environments lack the tools."""
    return None if _SELECTED.search(config.option.markexpr) else True
