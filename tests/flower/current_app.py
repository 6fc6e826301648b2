"""The app of `bodies` as the current one, as is that of most services: Flower finds results by it."""

from tests.flower.bodies import app

app.set_current()
