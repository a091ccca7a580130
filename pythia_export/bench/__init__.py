"""How fast an artifact runs beside everything else that runs the same checkpoint: one run, one table.

`run` takes turns, `line_up` says who takes part, `contestants` are they, `measure` is what is measured of each.
Each runs in a process of its own (peak memory is a process's) and in whichever interpreter has it.
"""
