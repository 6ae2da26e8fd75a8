"""A trained model as a program that JAX alone runs."""
