"""What a run would ask, without asking it."""
