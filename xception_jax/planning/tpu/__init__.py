"""Reads the TPU compiler's output: HLO and schedules; and the chips' figures."""
