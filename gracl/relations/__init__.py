"""Wing 2: what the features say about each other."""
