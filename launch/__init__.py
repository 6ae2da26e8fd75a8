"""Starts training on Cloud TPU VMs, Compute Engine, GKE and SLURM clusters.

Run from a checkout, for example `python -m launch.tpu_vm --help`; see docs/launch.md. The launchers
need only Python's standard library, except `launch.gke`, which writes YAML.
"""
