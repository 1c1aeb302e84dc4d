"""Handwritten kernels, one folder per operation: the math first, then one file per kind of processor."""
