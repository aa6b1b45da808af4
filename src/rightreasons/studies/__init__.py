"""Accuracy studies: each is a TOML file in tables/, and gives one table of docs/results.md."""
