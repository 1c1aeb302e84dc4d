"""Quantization-aware training: layers are trained beside the integer ones that they will become."""
