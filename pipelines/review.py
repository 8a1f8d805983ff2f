"""A checkpoint to one HTML page: figures, ranked results, clusters with both proxies, noise, a map of the features.

python pipelines/review.py checkpoint=runs/first/epoch-0010 data.root=shards/world out=review.html
ray job submit --working-dir . -- python pipelines/review.py checkpoint=s3://... data.root=s3://... out=s3://...
"""

from gracl.cli import door
from gracl.uses import ReviewConfig

if __name__ == "__main__":
    door(ReviewConfig, "gracl.runtime.review:review", __doc__ or "")
