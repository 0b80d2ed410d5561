"""`python -m benchmarks`: what this machine gets out of the system, beside the bare limit of what
it is built on.

Each section is a module with `run(stand, quick)`; `docs/benchmarks.md` says what its lines mean.
"""
