"""The networks of LTX-2 in plain PyTorch. They load no files and choose no device."""
