"""Quantisation: computing on 8-bit integers."""
