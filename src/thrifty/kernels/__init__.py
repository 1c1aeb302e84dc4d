"""Kernels written by hand for speed, one folder an operation: the math first, then one file a kind of processor."""
