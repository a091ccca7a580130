"""Many jobs of one kind, models x revisions x quantisations: planned, run and resumed, on one machine or by Slurm.

    sweep.toml ─► schema ─► plan ─► folder (jobs, results, failures) ◄─ work, by inline, submitit's local or Slurm
                                        │
                                        ▼
                                     table ─► fit, report

A *snapshot* is one model at one training step. A *job* is a snapshot and one quantisation, named by the hash of all
that its result depends on. A *task* is a snapshot with its jobs: one process does it, and shares what they have in
common.
"""
