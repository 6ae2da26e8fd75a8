"""What a run is made of: state, step, optimizer, metrics, sharding, checkpoints, telemetry."""
