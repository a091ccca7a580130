"""Who takes part, a file each: `PACKAGES` whose versions are recorded, `prepare`, which makes of the checkpoint what it
loads (in `Job.scratch`, once), and `open_contestant`. What is imported at the top of a file is part of its start."""
