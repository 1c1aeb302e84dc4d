"""Search over a trained model's own alternatives, block by block."""
