"""Pruning: removing parts of a network that matter little."""
