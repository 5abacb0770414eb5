"""What a person may choose of the tools, and what stands where nobody chooses: for commands, nodes and tools alike."""

from __future__ import annotations

GOALS = ("character", "style", "motion", "voice", "edit")  # what is to be learned; it decides how many files are enough
CAPTION_FRAMES = 8  # of a clip, shown to the model that describes it
SPEAKER = "A voice"  # who says what is heard
