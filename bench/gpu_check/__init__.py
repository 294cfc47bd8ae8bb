"""The check of a machine with a GPU, in minutes: ``bench/gpu_check.sh``; see docs/gpu.md.

`stages` says what is run and how long it may take, `running` runs it, `screen` tells of it.
`smoke`, `every_op` and `one_prune` are programs of stages. `bundle` prepares elsewhere what would
take a GPU's time: `launches` finds the kernels that are launched, `binaries` are what is written
down of them, `warm` compiles them.
"""
