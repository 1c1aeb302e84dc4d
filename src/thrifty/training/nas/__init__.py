"""Differentiable architecture search: choices in a model, and the training that decides them."""
