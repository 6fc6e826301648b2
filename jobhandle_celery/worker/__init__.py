"""What runs inside a Celery worker: claim, run, outcome, lease, sweep."""
