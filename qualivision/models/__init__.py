"""The models, as pure torch: no file reading but of weights, no MLflow, no DVC, no Prefect."""
