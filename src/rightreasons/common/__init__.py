"""Tools that every part of the package uses and that know nothing of the method."""
