"""From a configuration, or from memory, to what a run works on."""
