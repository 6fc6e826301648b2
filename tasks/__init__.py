"""A Celery app with three kinds of durable job, to be copied: checksums, thumbnails, scripts.

``celery -A tasks worker`` runs them, ``python -m tasks FOLDER`` shows them at work. Importing this opens no
connection and reads no environment; see `celeryconfig` for what it is configured by.
"""

from .application import app

__all__ = ["app"]
