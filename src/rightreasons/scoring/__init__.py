"""How often a model is right, for whom, and for which reasons."""
