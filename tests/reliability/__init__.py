"""What goes wrong with a server, made to go wrong; ``tests/reliability/run.py`` runs it and writes the page.

::

    case        what a fault program says: expected, seen, and the control that must fail
    processes   servers as processes, and what the kernel knows of them
    offline     the answers of the engine run alone, by which every answer over the wire is judged
    traffic     load that records each request with its answer; clients that lack what ours has
"""
