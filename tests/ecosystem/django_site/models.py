"""The service's own table."""

from typing import Any

from django.db import models

Model: Any = models.Model


class Order(Model):  # type: ignore[misc]  # untyped here
    path = models.TextField()
    thumbnails = models.IntegerField(default=0)
