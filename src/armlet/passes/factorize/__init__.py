"""Low-rank factorisation: layers become products of smaller ones."""
