"""Media -> clips -> caches -> batches.

dataset    the dataset file             plan       which windows of which media, at which size
listing    files and captions           media      exact frames of a video, images a picture
frames     frame rates and windows      buckets    sizes
caches     names, keys, staleness       encode     filling the caches (encode_text: captions)
sound      sound as the VAE wants it    sound_plan which seconds of which sound belong to a sample
speech     spoken segments              sound_media exact samples of a sound file (encode_sound: caches)
loader     checked samples              batches    order, and reading ahead
check      what is wrong with a dataset (check_files, check_folder, check_rules, check_report)
sheet      contact sheets               cut        long media into clips (cut_video, cut_sound, scenes)
captioning captions by local models     caption_models   these models
"""
