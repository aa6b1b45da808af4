"""The questions that a run would ask, collected without asking them."""
