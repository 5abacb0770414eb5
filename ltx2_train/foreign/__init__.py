"""What becomes of the flags and keys of other programs: data (the .toml files here) and the table they make.

    community      the community trainer's flags (musubi-tuner, branch ltx-2)
    official       the official trainer's YAML
    simpletuner    SimpleTuner's config.json; simpletuner_data its multidatabackend.json

`config` turns their files into run files by these rows, `dataset` into dataset files.
"""

from .table import PROGRAMS, NameRow, defaults_of, key_of, later_words, program_rows, row_of, topics

__all__ = ["PROGRAMS", "NameRow", "defaults_of", "key_of", "later_words", "row_of", "program_rows", "topics"]
