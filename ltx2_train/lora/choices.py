"""What can be chosen where LoRAs are merged and converted, apart from what does it, so that a node needs no torch."""

MERGE_METHODS = ("concat", "orthogonal")
MERGED_RANKS = ("sum", "max", "min")  # of a layer that orthogonal merges
FILE_DTYPES = ("auto", "bf16", "fp16", "fp32")  # of a file that a tool writes; auto: as in the files it reads
KEY_FORMATS = ("comfyui", "official", "diffusers", "community", "diffsynth")  # the table in convert.py has each
