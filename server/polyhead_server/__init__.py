"""Serves a bundle over gRPC: one pass, every answer.

The data's way, one file a step, no way back::

    text -> service -> pipeline -> admission -> tokenization -> batching -> engine -> heads -> service -> answer
            (wire in)  (the order)  (may it      (ids)           (who rides   (numbers) (labels,   (wire out)
                                     enter?)                      together)              norms)
"""
