"""Who takes part, a file each: `PACKAGES` whose versions are recorded, `open_contestant`, and where there is something
to make of the checkpoint first, `prepare`, which puts it into `Job.scratch`. What a file imports at its top is part of
the contestant's start."""
