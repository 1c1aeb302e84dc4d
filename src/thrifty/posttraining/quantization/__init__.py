"""Post-training quantization: which layer gets which scheme, and how each scheme's numbers are found."""
