"""Optimizers, one file each; what they share is in `optimizer`."""

from __future__ import annotations

from thrifty.training.optimizers.adamw import AdamW as AdamW
