"""The only wing that knows Ray and MLflow."""
