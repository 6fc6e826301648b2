"""An open transaction that wrote a foreign key to a job does not delay the job's end."""

from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import text

from tests.store.harness import Harness


def test_job_with_a_unique_key_ends_while_a_foreign_key_locks_it(postgresql_url: str) -> None:
    """With a UNIQUE constraint the foreign key's lock protected the unique column too (fault 44)."""
    harness, other = Harness(postgresql_url), Harness(postgresql_url)
    job_id = harness.submit(unique_key="k")
    run = harness.run(job_id)
    with harness.database.transaction() as connection:
        connection.execute(text("CREATE TABLE shop_order (job_id BIGINT REFERENCES jobhandle_job (id))"))
    with ThreadPoolExecutor(1) as pool, harness.database.transaction() as connection:
        # The application's transaction has no idle limit, unlike the library's.
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        connection.execute(text("INSERT INTO shop_order VALUES (:id)"), {"id": job_id})
        finished = pool.submit(other.store.runs.finish, run, "1")
        assert finished.result(timeout=20)
    assert harness.submit(unique_key="k") > job_id
    harness.close()
    other.close()
