"""Where quantize and dequantize stand in what a backend is given: each fuses its own patterns into integer kernels."""
