"""Reads what the TPU compiler writes: its HLO, its schedule, and the chips' figures."""
