from __future__ import annotations

import pytest
from polyhead_server.inference.model import Model
from polyhead_server.lifecycle.compatibility import identity_of, incompatibility
from polyhead_server.process_reports import HeadIdentity, ModelIdentity

TOPIC = HeadIdentity("topic", "softmax", ("a", "b"))
MOOD = HeadIdentity("mood", "sigmoid", ("no", "yes"))
OLD = ModelIdentity("space", (TOPIC, MOOD))


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        (OLD, None),
        (ModelIdentity("space", (TOPIC, MOOD, HeadIdentity("more", "softmax", ("x", "y")))), None),
        (ModelIdentity("other", OLD.heads), "embedding space other"),
        (ModelIdentity("space", (TOPIC,)), "1 heads"),
        (ModelIdentity("space", (MOOD, TOPIC)), "mood"),
        (ModelIdentity("space", (HeadIdentity("topic", "softmax", ("b", "a")), MOOD)), "b, a"),
        (ModelIdentity("space", (HeadIdentity("topic", "sigmoid", ("a", "b")), MOOD)), "sigmoid"),
        (ModelIdentity("space", (HeadIdentity("subject", "softmax", ("a", "b")), MOOD)), "subject"),
    ],
    ids=["same", "more heads", "space", "fewer heads", "order of heads", "order of labels", "kind", "name"],
)
def test_model_is_compatible_if_clients_can_continue(new: ModelIdentity, reason: str | None) -> None:
    found = incompatibility(OLD, new)
    assert found is None if reason is None else found is not None and reason in found


def test_head_without_labels_is_named_by_its_kind() -> None:
    assert str(HeadIdentity("price", "regression", ())) == "price (regression)"
    assert str(TOPIC) == "topic (softmax: a, b)"


def test_prompts_may_be_added_and_not_changed() -> None:
    old = ModelIdentity("space", (), {"query": "query: "})
    assert incompatibility(old, ModelIdentity("space", (), {"passage": "passage: ", "query": "query: "})) is None
    reason = incompatibility(old, ModelIdentity("space", (), {"query": "search: "}))
    assert reason == "it has the text 'search: ' for the prompt query; the serving model has 'query: '"
    reason = incompatibility(old, ModelIdentity("space", ()))
    assert reason == "it has no text for the prompt query; the serving model has 'query: '"


def test_identity_is_that_of_the_bundle(model: Model) -> None:
    identity = identity_of(model)
    assert identity.embedding_space == "e" * 16
    assert identity.heads == (
        HeadIdentity("topic", "softmax", ("a", "b", "c")),
        HeadIdentity("sentiment", "sigmoid", ("negative", "positive")),
    )
    assert identity.prompts == {"passage": "w8 w9 ", "query": "w7 "}
