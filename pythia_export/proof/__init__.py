"""Proof of an artifact: what is measured, with what confidence, and whether it clears the recipe's gates."""
