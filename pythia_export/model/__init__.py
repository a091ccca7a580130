"""The architecture: its configuration, the table of its tensors, one block's forward pass, the catalogue of Pythia."""
