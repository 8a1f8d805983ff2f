"""Wing 4: what is served, and how it is judged."""
