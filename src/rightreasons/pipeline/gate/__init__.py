"""A gate: checkpoints against bounds on how much they lean on what a run's verdicts call spurious."""
