"""What a vision-language model is asked about the segments, and what it said."""
