"""A dense model becomes one of another architecture, with the weights that it has."""
