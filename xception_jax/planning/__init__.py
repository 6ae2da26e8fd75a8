"""Predicts memory, time, collectives and cost of a run, also for devices that are not present."""
