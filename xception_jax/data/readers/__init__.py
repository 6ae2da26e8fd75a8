"""Readers of data sets: TFDS, tfrecord, folders of images, several joined."""
