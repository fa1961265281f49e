"""A candidate: a second model beside the served one, which it may replace.

::

    serving process                              candidate's process, idle priority
    Intake -> Sampler  ~ socket, drops when full ~>  ShadowWork: answers the same texts, compares, counts
    (share of the texts and their answers)           |
    CandidateManager  <----------- report -----------+

The candidate's process shares no interpreter with the served model and runs only on processor time that nothing else
uses, so it cannot delay an answer, and neither its memory nor a crash of it reaches the served model.
"""
