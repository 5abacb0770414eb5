"""What a stream may be given, defined once for training, validation and sampling.

settings   the conditions as a user writes them
given      which tokens of the target are given clean
reference  tokens in front of the target: where they lie, and who attends to them
stream     what the model is shown of both
"""
