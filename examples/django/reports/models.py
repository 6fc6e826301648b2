from django.conf import settings
from django.db import models


class Report(models.Model):
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    month = models.CharField(max_length=7)
    text = models.TextField(blank=True)
    job_id = models.BigIntegerField(null=True)
