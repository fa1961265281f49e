"""Drift: compares the recent texts and answers of a server with the validation texts of its model.

::

    batch -> monitor -> counting -> sketch            of each process that computes
             (at most 1 % of the time)  |
                                        +-> counts -> report -> metrics, admin service, ``polyhead drift``
                                            (merged)  (statistics)

Counts and sums alone are kept, no texts. ``polyhead bulk``'s output is compared by the same counting and report.
"""
