"""LoRA: its layer, where it goes (targets, inject), its files and what they say of themselves."""
