"""Abilities other than predicting text: tasks of lm-evaluation-harness, and what was published of the real models."""
