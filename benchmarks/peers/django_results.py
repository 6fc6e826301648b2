"""The part of Django that django-celery-results needs. Imports optional dependencies."""

import django
from django.conf import settings
from django.core.management import call_command
from django.db import connections
from sqlalchemy import make_url


def set_up(database_url: str) -> None:
    """Configure Django for a database; a second call in a process changes the database."""
    url = make_url(database_url)
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": url.database,
        "USER": url.username,
        "PASSWORD": url.password,
        "HOST": url.host,
        "PORT": url.port,
        # https://docs.djangoproject.com/en/stable/ref/databases/#persistent-connections
        "CONN_MAX_AGE": None,
    }
    if settings.configured:
        connections["default"].close()
        connections.settings["default"].update(database)
        connections["default"].settings_dict.update(database)
        return
    settings.configure(
        DATABASES={"default": database},
        INSTALLED_APPS=["django.contrib.contenttypes", "django_celery_results"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
    )
    django.setup()


def migrate() -> None:
    """Create the tables."""
    call_command("migrate", verbosity=0, interactive=False)
