"""Adapters for other projects; each file imports its project only when it is used."""
