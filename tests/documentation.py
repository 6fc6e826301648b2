"""The pages of the documentation, and the code that they show."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.workers import ROOT

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
}
FENCE = re.compile(
    r"^(<!-- not run: [^\n]+ -->\n)?( *)```(\w+)[^\n]*\n(.*?)^\2```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    code: str
    runs: bool

    @property
    def file(self) -> str | None:
        """The name in its first line; None for a part of the page's program."""
        named = re.match(r"# ([\w/]+\.py)\n", self.code)
        return named[1] if named else None


def blocks(page: str, language: str) -> list[Block]:
    """Return the blocks of a page in a language."""
    content = PAGES[page]
    return [
        Block(page, content.count("\n", 0, found.start(4)) + 1, found[3], found[4], found[1] is None)
        for found in FENCE.finditer(content)
        if found[3] == language
    ]


def files(page: str) -> dict[str, str]:
    """Return the files that a page shows, by name."""
    return {block.file: block.code for block in blocks(page, "python") if block.file and block.runs}


def with_servers(program: str, database: str | None, broker: str) -> str:
    """Return the program with these URLs; without a database, its URL is left to the configuration."""
    changed = re.sub(
        r'Jobs\(app, "[^"]+"\)', f"Jobs(app, {database!r})" if database else "Jobs(app)", program
    )
    changed = changed.replace('"redis://localhost:6379/0"', repr(broker))
    assert changed != program
    return changed


def python(*arguments: str, folder: Path) -> str:
    """Run Python in that folder and return what it prints."""
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    ran = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout
