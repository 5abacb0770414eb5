"""Media files -> exact frames and waveforms; knows no dataset.

info       what a medium holds        video       exact frames of a video        images      a picture
frames     frame rates and windows    buckets     sizes                          frame_folder  pictures as frames
sound_media exact samples of a file   sound       sound as the VAE wants it      speech      spoken segments
samples    those of one frame
scenes     where a film is cut        names       names that are safe for files
"""
