"""Prefect's side: what runs when, in which order, and what it leads to. What a stage does is `qualivision`'s."""
