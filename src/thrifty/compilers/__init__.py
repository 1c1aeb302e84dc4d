"""Compilers: one file per backend, from a model to an engine's files."""
