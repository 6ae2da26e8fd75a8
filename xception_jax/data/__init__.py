"""From a TFDS data set on disk to batches on the devices. Knows nothing of models."""
