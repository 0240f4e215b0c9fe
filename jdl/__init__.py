"""jdl: learning as pure functions on JAX."""
