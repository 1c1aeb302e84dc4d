"""Kernels written by hand for speed, one folder an operation: the maths first, then one file a kind of processor."""
