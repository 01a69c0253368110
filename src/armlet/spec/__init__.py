"""What users write: recipes, targets, passes and budgets as closed, immutable models."""
