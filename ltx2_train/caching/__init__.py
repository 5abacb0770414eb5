"""The plan -> cache files.

cache_file  keys, metadata, staleness   build     what every encoder needs: settings, jobs, reports
encode      latents, references         encode_text, encode_sound, encode_mask, encode_dino   the other kinds
due, turns, locks  who makes what and when, several processes in one folder
status, disk  what is there, what is to come    manifest  the caches as a dataset    official
"""
