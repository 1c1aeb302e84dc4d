"""Low-rank factorization: weights as products of thinner ones."""
