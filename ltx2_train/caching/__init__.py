"""The plan -> cache files.

cache_file  keys, metadata, reading     settings, recipe  what the user decides; what caches are made with
kind        what a kind of cache is     encode, encode_sound, encode_mask, encode_dino, encode_text  the kinds
kinds       the table of them           build   filling what is due
due, turns, locks  who makes what and when, several processes in one folder         notes  what failed, what is damaged
status, disk  what is there, what is to come    manifest  the caches as a dataset    official
"""
