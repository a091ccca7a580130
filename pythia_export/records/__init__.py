"""What the records of an artifact hold, as types: read once, checked once, written from the same types.

`quantization.json` says how each linear was rounded, `parity.json` what was proved, `manifest.json` where the artifact
comes from and what its files are; docs/reference shows every field. Whoever finds something out (a checkpoint's
hashes, a proof) builds the type of it here; `artifact` reads and writes the files; `report` turns them into text.
"""
