"""What a service over HTTP is made of; all but `deployments.py` runs without Ray Serve."""
