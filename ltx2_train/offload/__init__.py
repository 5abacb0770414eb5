"""Which weights and activations live where, and when they travel."""
