"""A run on disk: the files of its folder, and how its verdicts are read and added to."""
