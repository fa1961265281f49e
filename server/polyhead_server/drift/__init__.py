"""Drift: compares the recent texts and answers of a server with the validation texts of its model.

::

    batch -> monitor -> counting -> sketch            in each process that computes
             (at most 1 % of the time)  |
                                        +-> exchange -> report, statistics -> metrics, admin service, ``polyhead drift``
                                            (adds up the processes)

Counts and sums alone are kept, no texts. ``polyhead bulk``'s output is compared by the same counting and report.
"""
