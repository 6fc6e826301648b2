"""What people run around Celery, each beside jobs: `python -m pytest -m ecosystem` (see tests/README.md)."""
