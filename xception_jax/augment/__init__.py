"""Augmentation on the devices, inside the jitted step."""
