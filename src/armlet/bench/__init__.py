"""Timing protocol, statistics, and the core cost model."""
