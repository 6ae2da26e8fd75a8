"""Starts training on Cloud TPU VMs, Compute Engine, GKE and SLURM clusters.

Run from a checkout, for example `python -m launch.tpu_vm --help`; see docs/launch.md. Nothing here
needs more than Python's standard library, but for `launch.gke`, which writes YAML.
"""
