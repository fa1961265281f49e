"""Real clients of other servers against a real polyhead server: same answers, clear errors.

``run`` starts the servers, installs each client in an environment of its own, and runs its module of ``clients`` there.
``calls`` is what such a module imports; it requires the standard library alone. ``comparison`` compares the answers
with those of ``polyhead.v1``, and ``report`` writes docs/interoperability.md.
"""
