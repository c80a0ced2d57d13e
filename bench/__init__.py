"""The benchmark of fastconv: `python -m bench`, or `pytest bench`.

cases.py lists what is measured, cost.py what it must cost at least, problem.py makes the inputs and the float64 answer, rivals.py and runtimes.py
list who is measured, measure.py (cpu) and cuda.py how, machine.py what the machine can do, report.py, goals.py and plots.py what is said about it.
"""
