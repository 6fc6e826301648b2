"""The checks of `.ci/run`, one session each: `nox --list`, `nox -s "tests-3.12(newest)"`, `nox -s wheel`."""

from pathlib import Path

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "docs", "tests"]

PYTHONS = ["3.11", "3.12", "3.13"]


def install(session: nox.Session, *groups: str, constraints: str | None = None) -> None:
    """Install the checkout, editable, and the dependency groups."""
    session.install("--upgrade", "pip>=25.1")  # the first one with --group
    options = [option for group in groups for option in ("--group", group)]
    session.install("-e", ".", *options, *(["--constraint", constraints] if constraints else []))


@nox.session(python=PYTHONS)
@nox.parametrize("dependencies", [nox.param("newest", id="newest"), nox.param("oldest", id="oldest")])
def tests(session: nox.Session, dependencies: str) -> None:
    """Run the tests; with the oldest dependencies, some of each module."""
    oldest = dependencies == "oldest"
    if oldest and session.python != "3.11":
        session.skip("the oldest dependencies have no wheels for newer Pythons")
    install(session, "test", constraints="tests/oldest-dependencies.txt" if oldest else None)
    cut = ["-p", "tests.one_case_each"] if oldest else []
    session.run("python", "-m", "pytest", *cut, *session.posargs)


@nox.session(python="3.11")
def faults(session: nox.Session) -> None:
    """Kill, cut and fuzz."""
    install(session, "test")
    session.run("python", "-m", "pytest", "-m", "faults", "--dist", "loadfile", *session.posargs)


@nox.session(python="3.11")
def ecosystem(session: nox.Session) -> None:
    """Run jobs beside what people run around Celery."""
    install(session, "ecosystem")
    session.install("--no-deps", "celery-batches==0.11")  # it asks for a Celery before 5.7
    session.run("python", "-m", "pytest", "-m", "ecosystem", *session.posargs)


@nox.session(python="3.11")
def lint(session: nox.Session) -> None:
    """Run Ruff, mypy and import-linter."""
    install(session, "test", "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")


@nox.session(python="3.11")
def docs(session: nox.Session) -> None:
    """Build the documentation into site/; a warning is an error."""
    install(session, "docs")
    session.run("mkdocs", "build", "--strict", *session.posargs)


@nox.session(python=PYTHONS)
def wheel(session: nox.Session) -> None:
    """Build sdist and wheel, install the wheel alone, and run a job with it."""
    session.install("build")
    folder = session.create_tmp()
    session.run("python", "-m", "build", "--outdir", folder)
    session.run("python", "-m", "venv", "--clear", f"{folder}/empty")
    (built,) = sorted(Path(folder).glob("*.whl"))[-1:]
    session.run(f"{folder}/empty/bin/pip", "install", "-q", str(built), external=True)
    session.run(f"{folder}/empty/bin/python", "tests/installed.py", external=True)
