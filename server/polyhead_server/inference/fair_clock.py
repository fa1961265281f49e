"""Virtual time of weighted fair queueing."""

from __future__ import annotations

from .types import Flow


class FairClock:
    """Assigns each entry its virtual start time; the entry with the smallest one is served first.

    The virtual time is the number of tokens that each waiting flow would have been served so far if all of them were
    served side by side (weighted fair queueing: Demers, Keshav, Shenker 1989; start times: Goyal et al. 1996). Entries
    of one flow start one after the other: each at its predecessor's virtual finish, or now where that has passed.

    A flow without waiting entries is not charged for its last entry. A stream that sends its next text when the last
    one is answered then has the same rank as a client that makes a call per text, instead of waiting for a full round
    over all flows. A burst of many texts is charged in full, also once none of them waits.

    Not thread-safe: the scheduler calls it under its lock. Only writer of ``virtual_finish`` and ``last_length`` of a
    ``Flow``.
    """

    def __init__(self) -> None:
        self.now = 0.0

    def start(self, flow: Flow, length: int) -> float:
        """Charges ``flow`` for a new entry of ``length`` tokens and returns the entry's virtual start time.

        Must be called before the entry is counted as waiting.
        """
        finish = flow.virtual_finish if flow.waiting_tokens else flow.virtual_finish - flow.last_length
        start = max(self.now, finish)
        flow.virtual_finish, flow.last_length = start + length, length
        return start

    def advance(self, length: int, waiting_flows: int) -> None:
        """Advances the virtual time by the service of an entry, shared among all flows that wait."""
        self.now += length / waiting_flows

    def refund(self, flow: Flow, length: int) -> None:
        """Takes back the charge for an entry that left the queue without being computed."""
        flow.virtual_finish -= length
