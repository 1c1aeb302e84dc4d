"""What quantization is: integer grids, observers, integer modules; shared by training and post-training."""
