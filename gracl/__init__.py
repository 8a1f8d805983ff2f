"""gracl: unsupervised object re-identification by Global Relation-Aware Contrast Learning, on Ray.

The public face: plain arrays in, plain arrays out. Importing it never imports Ray or MLflow.
"""

__version__ = "0.1.0"
