"""Benchmarks of durable jobs beside the systems in use today: ``python -m benchmarks``.

They use the public interface of the library, except where a benchmark says otherwise, so that they measure
another version as well. They run on real servers; each round measures all systems, in a shuffled order.
"""
