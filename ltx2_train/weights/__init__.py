"""Between files and modules: what a file is, reading it tensor by tensor, fingerprints, tiny checkpoints."""
