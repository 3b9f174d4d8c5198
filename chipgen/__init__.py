"""Chip generation: annotated pictures in, verified shards of chips out. Never imports torch."""
