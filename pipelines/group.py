"""Who is on which image: an embedding table to groups of images of one object each, with confidence, and a page.

python pipelines/group.py embeddings=features out=groups
python pipelines/group.py embeddings=features out=groups relations.eps=0.5 tracks=ignore
"""

from gracl.cli import door
from gracl.uses import GroupConfig

if __name__ == "__main__":
    door(GroupConfig, "gracl.runtime.group:group", __doc__ or "")
