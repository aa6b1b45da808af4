"""The method from end to end: find, fix and score, for the command line and for Python alike."""
