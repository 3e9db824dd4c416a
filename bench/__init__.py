"""Sluice beside its peers on one machine, in one run, on the same files: ``python -m bench``.

``__main__`` reads the options, ``site`` starts the servers, ``rows_*`` load them round by round through ``measure``,
``report`` prints what came out and writes ``docs/benchmarks.md``. Nothing here asserts a speed: a benchmark informs,
a test decides.
"""
