"""A search index over an embedding table: built once, kept in a folder, added to with add=true.

python pipelines/index.py embeddings=features out=index
"""

from gracl.cli import door
from gracl.uses import IndexConfig

if __name__ == "__main__":
    door(IndexConfig, "gracl.runtime.search:index", __doc__ or "")
