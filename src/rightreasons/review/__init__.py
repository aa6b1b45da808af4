"""The page in which experts look at what was judged, overrule it, and start the repair: a small server on this machine alone."""
