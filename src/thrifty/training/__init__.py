"""Methods applied during training, and the one loop that drives them."""
