"""Tasks that are made here, with their ground truth: one file each, and a row in ``rightreasons.data``."""
