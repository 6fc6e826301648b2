"""Its settings; the tests set the environment."""

import os

SECRET_KEY = "only-for-tests"
INSTALLED_APPS = ["tests.ecosystem.django_site", "django_celery_beat"]
MIGRATION_MODULES = {"django_celery_beat": None}  # its tables at once, without its history
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["SITE_DATABASE"],
        # A transaction that reads before it writes fails at once if a worker has written in between.
        "OPTIONS": {"timeout": 30, "transaction_mode": "IMMEDIATE"},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True

CELERY_BROKER_URL = os.environ["SITE_BROKER"]
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_JOBHANDLE_SWEEP_INTERVAL = 0.2
