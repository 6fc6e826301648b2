"""Each key of Celery's configuration that may concern publishing, and its effect on jobs (fault 13)."""

from celery.app import defaults

from tests.broker.options import CONFIGURATION

COMPARED = set(CONFIGURATION)
"""Visible in a message, and compared with plain Celery's (test_options)."""

ROUTING = {
    "task_routes",
    "task_queues",
    "task_default_queue",
    "task_default_queue_type",
    "task_default_exchange_type",
    "task_create_missing_queues",
    "task_create_missing_queue_type",
    "task_create_missing_queue_exchange_type",
    "task_queue_max_priority",
    "task_annotations",
    "task_inherit_parent_priority",
}
"""Celery itself resolves the route of a job with them at the submit."""

ELSEWHERE = {
    "accept_content": "a job is refused if its workers would not accept it",
    "task_protocol": "a job is refused with any but 2",
    "task_serializer": "a job's message is JSON, or signed JSON with `auth`, for its row is",
    "task_publish_retry": "the sweeper publishes what the broker did not take",
    "task_publish_retry_policy": "as task_publish_retry",
    "task_send_sent_event": "the event follows each message that is sent",
    "task_always_eager": "a job runs where it is submitted",
    "task_eager_propagates": "a submit raises what a body has raised",
    "task_store_eager_result": "Celery's own, as for a plain task",
    "enable_utc": "a row's times have a zone",
    "timezone": "a row's times have a zone",
    "imports": "not about publishing",
    "include": "not about publishing",
    "result_accept_content": "not about publishing",
}

WORKERS = {
    "task_acks_late",
    "task_acks_on_failure_or_timeout",
    "task_acks_on_failure",
    "task_acks_on_timeout",
    "task_default_rate_limit",
    "task_reject_on_worker_lost",
    "task_retry_on_worker_lost",
    "task_remote_tracebacks",
    "task_store_errors_even_if_ignored",
    "task_track_started",
    "task_allow_error_cb_on_chord_header",
}
"""Read by a worker, not by a publisher."""

OTHER = {
    *[
        "beat",
        "cache",
        "cassandra",
        "s3",
        "azureblockblob",
        "gcs",
        "control",
        "couchbase",
        "arangodb",
        "mongodb",
        "cosmosdbsql",
        "event",
        "redis",
    ],
    *["result", "elasticsearch", "security", "database", "worker", "broker", "dynamodb"],
}
"""Whole namespaces; `broker` is how connections are made, for jobs by `app.connection_for_write`."""


def test_every_configuration_key_of_celery_is_classified() -> None:
    """A key that Celery adds later makes this fail, until it is classified."""
    keys = {f"task_{key}" for key in defaults.NAMESPACES["task"]}
    keys |= {key for key, option in defaults.NAMESPACES.items() if isinstance(option, defaults.Option)}
    assert keys - (COMPARED | ROUTING | ELSEWHERE.keys() | WORKERS) == set()
    namespaces = {
        key for key, option in defaults.NAMESPACES.items() if not isinstance(option, defaults.Option)
    }
    assert namespaces - OTHER - {"task"} == set()
