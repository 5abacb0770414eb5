"""Cache files -> samples -> batches, in an order that can be resumed.

samples    what a sample is            sample_check  whether its caches fit      cached  datasets of caches alone
loader     the training set            batches       order, and reading ahead
"""
