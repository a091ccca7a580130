"""Proof of an artifact: what is measured, with what confidence, and whether it clears the recipe's gates."""

SCHEMA = 2  # of parity.json, which docs/parity.md describes
