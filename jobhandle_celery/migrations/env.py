"""Alembic's entry: runs the migrations on the connection that `upgrade` gives it."""

from alembic import context
from sqlalchemy.schema import CreateSchema

from jobhandle_celery.schema import VERSION_TABLE, metadata

config = context.config
schema = config.attributes.get("schema")
connection = config.attributes.get("connection")

if connection is None:
    context.configure(
        dialect_name=config.attributes["dialect"],
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        version_table_schema=schema,
        literal_binds=True,
    )
else:
    if schema is not None:
        connection = connection.execution_options(schema_translate_map={None: schema})
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        version_table_schema=schema,
    )

with context.begin_transaction():
    if connection is None and schema is not None:
        # Printed statements name no schema of their own.
        dialect = context.get_context().dialect
        switch = "SET search_path TO" if dialect.name == "postgresql" else "USE"
        context.execute(CreateSchema(schema, if_not_exists=True))
        context.execute(f"{switch} {dialect.identifier_preparer.quote(schema)}")
    context.run_migrations()
