"""A Celery app with three durable tasks, to be copied: checksum, thumbnail, script.

``celery -A tasks worker`` runs them; ``python -m tasks FOLDER`` demonstrates them. Importing this package
opens no connection and reads no environment variable; `celeryconfig` is read at the first use of the app.
"""

from .application import app

__all__ = ["app"]
