"""Shards of chips in, a detector out."""
