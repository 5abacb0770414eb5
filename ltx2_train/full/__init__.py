"""Full fine-tuning: the weights of the transformer themselves, how they are moved, and the checkpoint they become."""
