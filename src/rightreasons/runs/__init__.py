"""A run on disk: the files of its folder, and reading and adding verdicts."""
