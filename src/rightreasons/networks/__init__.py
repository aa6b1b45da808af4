"""Classifiers: opened, checked, trained, and asked for their answers."""
