"""A slider on the tiny model, in seconds."""

TEXTS = {"targets": [{"positive": "a bright red ball", "negative": "a dark blue ball", "target_class": "a ball"}]}

RUN = """\
[run]
name = "slide"
[model]
checkpoint = '{checkpoint}'
text_encoder = '{encoder}'
precision = "fp32"
device = "cpu"
[lora]
rank = 4
[train]
steps = 4
learning_rate = 1e-3
save_every = 2
[sample]
every = 0
[slider]
width = 64
height = 64
{slider}
"""
