"""The app of Procrastinate. Imports an optional dependency."""

import os

from procrastinate import App, PsycopgConnector
from procrastinate.connector import BaseConnector

from .. import marks


def make_app(connector: BaseConnector) -> App:
    """Create an app with an asynchronous task, which needs no thread."""
    app = App(connector=connector)

    async def body(number: int) -> None:
        marks.body(number)

    app.task(name="benchmarks.body", queue="benchmarks")(body)
    return app


app = make_app(PsycopgConnector(conninfo=os.environ.get("BENCHMARK_DATABASE", "")))
