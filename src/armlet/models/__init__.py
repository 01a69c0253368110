"""Model families, and how networks are built, saved and loaded."""
