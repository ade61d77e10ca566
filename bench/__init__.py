"""Benchmarks against torch and other libraries, at right answers; `make bench` runs them, README.md says how to read them."""
