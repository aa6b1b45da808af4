"""The package as the index gets it."""
