"""One script per claim: `python -m benchmarks.NAME [--quick]` prints what it measures, then one line of JSON."""
