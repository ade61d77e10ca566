"""Tests with other projects' real packages, each in an environment of its own: `make test-frameworks`."""
