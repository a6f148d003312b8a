"""`uld plan`: the programs of a config, compiled for devices that are absent, and what the compilers say of them.

topology.py   devices by name; a file a platform: tpu.py, gpu.py, cpu.py
programs.py   a config's programs, with shapes as arguments
arithmetic.py FLOPs of a traced program
hlo.py        bytes, copies, collectives, kernels and cycles of a compiled program, read from its text
measure.py    one program: memory, bounds of its time, the largest batch
report.py     all programs: the file and the tables
"""
