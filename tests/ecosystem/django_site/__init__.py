"""A Django project with jobs, as docs/how-to/django.md shows one."""
