"""Optimizers, one file each; what they share is in `common`."""

from __future__ import annotations

from thrifty.training.optimizers.adamw import AdamW as AdamW
