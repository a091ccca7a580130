"""What every room stands on: errors, progress, the machine, strict JSON. It imports nothing of ours from above."""
