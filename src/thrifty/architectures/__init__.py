"""Layers and language models that cost less than a transformer's: state-space models, and backbones that mix them."""
