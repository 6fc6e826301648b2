"""The store's own suite, on every database: it knows nothing of Celery."""
