"""The test suite; a package so that `python -m tests.oracles` runs and helpers are shared."""
