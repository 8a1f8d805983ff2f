"""Wing 3: what a step does."""
