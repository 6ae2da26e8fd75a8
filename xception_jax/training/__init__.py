"""The parts of a run: state, step, optimizer, metrics, sharding, checkpoints, telemetry."""
