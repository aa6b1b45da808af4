"""Accuracy studies as TOML, one per table."""
