"""Readers of the forms in which people have labelled images: one file each, and a row in ``rightreasons.data``."""
