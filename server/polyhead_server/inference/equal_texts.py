"""Entries with equal token ids: which of them wait, and which is being computed for all of them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from .token_accounting import TokenAccounting
from .types import Entry


def key_of(ids: Sequence[int]) -> bytes:
    """Returns the key of entries with these token ids.

    Bytes, because Python hashes them with a random seed: clients cannot choose texts whose keys collide.
    """
    return array("I", ids).tobytes()


class EqualTexts:
    """Lets entries with the same ``key`` share one computation.

    Each of them waits in the queue for itself, with its own place, deadline and cancellation. The first that is taken
    is computed for all that wait then, and for those that come until it is finished. So a text is computed as early as
    the most urgent of its calls would have it, and as long as one of them wants it.

    Entries without a key share nothing. An entry with a key costs one look-up when it comes and one when it is
    finished, as long as there is no other with the same key.

    Invariants:

    - ``_known`` has an entry for each key that waits or is being computed: the one that is being computed, otherwise
      any that waits.
    - Waiting entries with the same key have the same ``twins``, which holds all of them; None for an entry that has
      been the only one with its key.

    Not thread-safe: the scheduler calls it under its lock. Only writer of ``twins`` and ``shared`` of an ``Entry``.
    """

    def __init__(self, accounting: TokenAccounting) -> None:
        """Starts without entries.

        Args:
            accounting: Counts the tokens of waiting entries that an equal one stands for.
        """
        self._accounting = accounting
        self._known: dict[bytes, Entry] = {}

    def __len__(self) -> int:
        """Returns the number of different keys that wait or are being computed."""
        return len(self._known)

    def join(self, entry: Entry) -> bool:
        """Registers a new entry; returns whether it gets the answer of a computation in progress and need not wait."""
        if entry.key is None:
            return False
        first = self._known.setdefault(entry.key, entry)
        if first is entry:
            return False
        if not first.waiting:
            if first.shared is None:
                first.shared = []
            first.shared.append(entry)
            return True
        if first.twins is None:
            first.twins = {first: None}
        first.twins[entry] = None
        entry.twins = first.twins
        self._accounting.count_duplicates(entry.length)
        return False

    def is_duplicate(self, entry: Entry) -> bool:
        """Returns whether another waiting entry stands for this one in the choice of a batch."""
        return entry.twins is not None and entry.key is not None and self._known[entry.key] is not entry

    def leave(self, entry: Entry) -> None:
        """Forgets a waiting entry that will not be computed."""
        if entry.key is None:
            return
        twins = entry.twins
        if twins is None:
            del self._known[entry.key]
            return
        del twins[entry]
        entry.twins = None
        if twins:
            self._accounting.count_duplicates(-entry.length)
        if self._known[entry.key] is entry:
            if twins:
                # The last one: to find the first takes a scan over those that have left.
                other, _ = twins.popitem()
                twins[other] = None
                self._known[entry.key] = other
            else:
                del self._known[entry.key]

    def take(self, entry: Entry) -> Sequence[Entry]:
        """Marks an entry as being computed; returns the others that have waited and are answered with it."""
        twins = entry.twins
        if entry.key is None or twins is None:
            return ()
        del twins[entry]
        self._known[entry.key] = entry
        entry.shared = list(twins)
        self._accounting.count_duplicates(-entry.length * len(twins))
        for one in (entry, *twins):
            one.twins = None
        return entry.shared

    def finish(self, entry: Entry) -> None:
        """Ends a computation: entries that come from now on are computed anew."""
        if entry.key is not None:
            del self._known[entry.key]
