"""Media -> clips -> caches -> batches.

dataset    the dataset file             plan       which windows of which media, at which size
listing    files and captions           media      exact frames of a video, images a picture
frames     frame rates and windows      buckets    sizes
caches     names, keys, staleness       encode     filling the caches (encode_text: captions)
loader     checked samples              batches    order, and reading ahead
"""
