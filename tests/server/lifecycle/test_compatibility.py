from __future__ import annotations

import json

import pytest
from polyhead_server.inference.model import Model
from polyhead_server.lifecycle.compatibility import Identity, problem

TOPIC = ("topic", "softmax", ("a", "b"))
MOOD = ("mood", "sigmoid", ("no", "yes"))
OLD = Identity("space", (TOPIC, MOOD))


@pytest.mark.parametrize(
    ("new", "why"),
    [
        (OLD, None),
        (Identity("space", (TOPIC, MOOD, ("more", "softmax", ("x", "y")))), None),
        (Identity("other", OLD.heads), "embedding space other"),
        (Identity("space", (TOPIC,)), "1 heads"),
        (Identity("space", (MOOD, TOPIC)), "mood"),
        (Identity("space", (("topic", "softmax", ("b", "a")), MOOD)), "b, a"),
        (Identity("space", (("topic", "sigmoid", ("a", "b")), MOOD)), "sigmoid"),
        (Identity("space", (("subject", "softmax", ("a", "b")), MOOD)), "subject"),
    ],
    ids=["same", "more heads", "space", "fewer heads", "order of heads", "order of labels", "kind", "name"],
)
def test_model_may_follow_where_clients_can_go_on(new: Identity, why: str | None) -> None:
    found = problem(OLD, new)
    assert found is None if why is None else found is not None and why in found


def test_identity_survives_the_way_to_another_process(model: Model) -> None:
    identity = Identity.of(model)
    assert identity.embedding_space == "e" * 16
    assert Identity.from_json(json.loads(json.dumps(identity.to_json()))) == identity
