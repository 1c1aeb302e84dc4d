"""Pruning: what is removed (channels, heads, the residual stream, blocks, single weights), by which criterion."""
