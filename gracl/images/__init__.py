"""Wing 1: how a picture is found, kept, ordered and seen."""
