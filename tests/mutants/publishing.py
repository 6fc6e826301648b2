"""Guards of what jobs of one call, and their messages, share, whose absence a test must notice, too."""

from tests.mutants.mutant import Drop, DropStatement, Mutant, Replace

PUBLISHING = [
    Mutant(
        250,
        "messages to RabbitMQ are made from templates although a method on their way is patched",
        "broker.amqp_transport:AmqpTransport.send",
        (Replace(("publishes_by_kombu",), by="True"),),
        "-m faults tests/faults/test_amqp_transport.py -k patched",
    ),
    Mutant(
        252,
        "a message of which a placeholder is missing or doubled makes a template",
        "broker.publish_templates:SplitRecording.at",
        (Replace(("count", "any"), by="False"),),
        "tests/broker/test_publish_templates.py",
    ),
    Mutant(
        253,
        "frames are written to a closed connection",
        "celery_compat:write_frames",
        (DropStatement(("RecoverableConnectionError",)),),
        "-m faults tests/faults/test_celery_compat_rabbitmq.py -k closed",
    ),
    Mutant(
        254,
        "a template is recorded before kombu has declared the queue",
        "broker.publish_templates:PublishTemplates.get",
        (Replace(("issuperset", "declared"), by="True"),),
        "tests/broker/test_redis_transport.py -k equals_kombus",
    ),
    Mutant(
        255,
        "a job is prepared as one whose values equal its own, but are of other types",
        "preparer:_wishes",
        (Replace(("types", "values"), by="((), values)"),),
        "tests/test_alike_jobs.py",
    ),
    Mutant(
        256,
        "jobs that differ in values that are not plain are prepared alike",
        "preparer:_wishes",
        (DropStatement(("headers", "sensitive", "after")),),
        "tests/test_alike_jobs.py",
    ),
    Mutant(
        257,
        "no handler of publish signals is called for a job like the one before",
        "broker.routing:Routing.ignores_arguments",
        (Drop(("has_signal_handlers",)),),
        "tests/test_alike_jobs.py",
    ),
    Mutant(
        258,
        "an apply_async of a task's own is not asked for a job like the one before",
        "broker.routing:Routing.ignores_arguments",
        (Drop(("is_published_by_celery",)),),
        "tests/test_alike_jobs.py",
    ),
    Mutant(
        259,
        "a route that is a function is not asked for a job like the one before",
        "broker.routing:Routing.ignores_arguments",
        (Drop(("_has_plain_routes",)),),
        "tests/test_alike_jobs.py",
    ),
    Mutant(
        260,
        "a job like the one before has its name in logs",
        "broker.routing:Routing.ignores_arguments",
        (Drop(("has_shadow_name",)),),
        "tests/test_alike_jobs.py",
    ),
    Mutant(
        261,
        "the arguments of a job like the one before are not checked",
        "broker.routing:Routing.checked_arguments",
        (DropStatement(("validation", "arguments")),),
        "tests/test_alike_jobs.py",
    ),
    Mutant(
        262,
        "the sensitive arguments of a job like the one before are the other's",
        "broker.routing:Routing.ignores_arguments",
        (Drop(("sensitive", "getattr")),),
        "tests/test_alike_jobs.py",
    ),
]
