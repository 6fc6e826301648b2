"""The app of Procrastinate's workers. Imports an optional dependency."""

import os

from procrastinate import App, PsycopgConnector
from procrastinate.connector import BaseConnector

from .. import marks


def make_app(connector: BaseConnector) -> App:
    """Make an app with the one task, asynchronous: no thread has to be asked to run it."""
    app = App(connector=connector)

    async def body(number: int) -> None:
        marks.body(number)

    app.task(name="benchmarks.body", queue="benchmarks")(body)
    return app


app = make_app(PsycopgConnector(conninfo=os.environ.get("BENCHMARK_DATABASE", "")))
