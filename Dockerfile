# One image for the demo's worker, commands and Flower. Configured by environment variables, see docker-compose.yml.

FROM python:3.13-slim AS build
RUN python -m venv --without-pip /venv
WORKDIR /source
# The dependencies first, by the metadata and a placeholder package: this layer is rebuilt only when the metadata change.
COPY pyproject.toml LICENSE ./
RUN mkdir jobhandle_celery && echo '__version__ = "0"' >jobhandle_celery/__init__.py && touch README.md \
    && pip --python /venv/bin/python install --no-cache-dir '.[redis,postgresql,demo,flower]'
COPY README.md ./
COPY jobhandle_celery jobhandle_celery
RUN pip --python /venv/bin/python install --no-cache-dir --no-deps --force-reinstall .

FROM python:3.13-slim
# Any user may run it: it writes to /work, which is writable by all as /tmp is, and to mounted folders.
RUN mkdir -m 1777 /work
COPY --from=build /venv /venv
COPY tasks /app/tasks
ENV PATH=/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/work \
    # After the SIGTERM of `docker stop`, running tasks have JOBHANDLE_SHUTDOWN_TIMEOUT seconds; then their jobs are given back.
    REMAP_SIGTERM=SIGQUIT
USER 10001:10001
WORKDIR /work
CMD ["celery", "-A", "tasks", "worker", "--loglevel=INFO", "--task-events"]
