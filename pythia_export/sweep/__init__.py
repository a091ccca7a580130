"""Many jobs of one kind: models x revisions x quantisations, each checkpoint's cost of rounding, and the curve of it all.

    sweep.toml ─► schema ─► plan ─► folder (jobs, results, failures) ◄─ work, by inline, submitit's local or Slurm
                                        │
                                        ▼
                                     table ─► fit, report

A *snapshot* is one model at one training step; a *job* is a snapshot and one quantisation, named by the hash of all that
its result depends on; a *task* is a snapshot with its jobs, done by one process, which shares what they have in common.
"""
