"""Compilers: one file a backend, from a model to an engine's files."""
