"""The order of values in memory, packed constants, and the list of calls that comes of them."""
