"""What a dataset file says, and what it comes to: the plan.

dataset_file  the file as a whole     entry       one dataset of it (entry_types, condition_settings, sound_settings)
scan       files and captions         lists       lists of media (companions: what lies beside a medium)
windows    which frames of which      sound_plan  which seconds of which sound
plan       all of it, item by item    manifest    a dataset of caches alone, read
cache_names  files of an item         sources     what a medium was when it was planned
"""
