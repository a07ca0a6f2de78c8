"""The champion at work for others: as an MLflow pyfunc, and behind our own HTTP server."""
