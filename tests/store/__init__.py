"""The store's own suite, on every database, without Celery."""
