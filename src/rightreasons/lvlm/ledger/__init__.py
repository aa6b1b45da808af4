"""A record of every attempt at a request, so that no answer is paid for twice."""
