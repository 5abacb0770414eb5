"""Tools for people at their data, before anything is cached.

check      what is wrong with a dataset (check_files, check_folder, check_rules, check_report)
sheet      contact sheets               cut    long media into clips (cut_video, cut_sound, cut_speech)
captioning captions by local models     caption_models   these models
"""
