"""Fault injection against real servers; ``python -m tests.reliability.run`` runs it and writes docs/reliability.md.

::

    run                 command line: runs scenarios, stores their results, writes the page
    scenario            a scenario: its fault, the expected behavior, its verdict and its control
    processes           server processes, and their state as reported by the kernel
    reference_answers   the engine's answers without a server; every answer of a server is compared with them
    traffic             load that records the outcome of each request; a client without retries for the controls
    report              renders the page from the results
"""
