"""A checkpoint as a registered MLflow model with its card; the champion where it beats the present one.

python pipelines/publish.py checkpoint=runs/first/epoch-0010 model=world
ray job submit --working-dir . -- python pipelines/publish.py checkpoint=s3://... model=world
"""

from gracl.cli import door
from gracl.uses import PublishConfig

if __name__ == "__main__":
    door(PublishConfig, "gracl.runtime.publish:publish", __doc__ or "")
