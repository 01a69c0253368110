"""Training on the answers and the inner values of other networks."""
