"""How far two honest computations of one quantised network may be apart."""

from __future__ import annotations

import math

FEWEST_STEPS = 2
INTEGER_LEVELS = 255


def steps_allowed(n_rounded: int) -> int:
    """Return how many quantisation steps two computations may differ by after `n_rounded` rounded layers.

    A value that lies between two integers goes either way where the sum before it differs in its last bit. Each layer
    may add such a step to those that reach it; steps of random sign add up as the square root of their number.
    """
    return max(FEWEST_STEPS, math.ceil(math.sqrt(n_rounded)))
