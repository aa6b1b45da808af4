"""What a classifier leans on: images chosen, explained and cut into segments. Asks nobody."""
