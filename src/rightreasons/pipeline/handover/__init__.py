"""Hands a repaired model over: its weights and programs, each checked against the model itself, and a model card beside them."""
