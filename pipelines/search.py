"""What of an index is most like some pictures, and whether it is the same object.

python pipelines/search.py index=index queries=query.jpg
python pipelines/search.py index=index queries=folder false_match_rate=0.01 out=found
"""

from gracl.cli import door
from gracl.uses import SearchConfig

if __name__ == "__main__":
    door(SearchConfig, "gracl.runtime.search:search", __doc__ or "")
