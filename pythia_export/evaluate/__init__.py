"""Tasks of lm-evaluation-harness on an artifact, beside the published results of the original models."""
