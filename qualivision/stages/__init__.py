"""The stages of `dvc.yaml`, one module each, of the same name.

A stage is thin: it reads its part of `params.yaml`, calls the library, writes its declared outputs and returns one
line that says what it did. It writes nowhere else but to MLflow's store.
"""
