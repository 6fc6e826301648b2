"""How fast durable jobs are, measured beside what people use today: ``python -m benchmarks``.

Uses the library through its public face alone (where a benchmark cannot, it says so), so that it measures
one version of it as well as another. Real servers, every contestant in one run, round by round in turn.
"""
