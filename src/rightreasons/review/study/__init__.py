"""The pages of a blind study: people judge segments before they see what the LVLM said."""
