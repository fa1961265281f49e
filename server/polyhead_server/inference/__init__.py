"""The inference pipeline: admission, tokenization, scheduling, execution, postprocessing. Independent of gRPC.

The way of a text, one file a step::

    pipeline -> admission -> tokenization -> scheduler -> executor -> postprocessing
                                 |               |            |
                             word_cache      fair_clock    polyhead_server.engines
                             windows         length_buckets
                                             expiry_heap

``token_accounting`` counts the work in progress, ``model`` loads the bundle, ``autotune`` chooses the batch size and
``types`` has the types that the steps share.
"""
