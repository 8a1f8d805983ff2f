"""gracl: unsupervised object re-identification by Global Relation-Aware Contrast Learning, on Ray."""
