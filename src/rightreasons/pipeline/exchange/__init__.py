"""A run's findings and verdicts, to and from other programs: the suspects' list, and marks that people made elsewhere."""
