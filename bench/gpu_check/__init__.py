"""The check of a machine with a GPU, in minutes: ``bench/gpu_check.sh``; see docs/gpu.md.

`stages` lists what runs and for how long, `running` runs it, `screen` summarizes it. `smoke`,
`every_op` and `one_prune` are programs of stages. `bundle` prepares on another machine what would
take a GPU's time: `launches` finds the kernels that are launched, `binaries` stores them, `warm`
compiles them.
"""
