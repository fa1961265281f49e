"""A run and its model remember the prompts of the configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from polyhead_training.config import Config
from polyhead_training.runs.run_directory import load_run
from polyhead_training.train import train

from tests.support.tiny_training import ignore


def test_run_and_model_remember_the_prompts(configure: Callable[..., Config], tmp_path: Path) -> None:
    prompts = {"passage": "soup: ", "query": "the parcel, "}
    config = configure("model.prompts={query='the parcel, ', passage='soup: '}", "data.prompt=query")
    train(config, tmp_path / "run", max_steps=1, report=ignore)
    run = load_run(tmp_path / "run")
    assert (run.model.config.prompts, run.prefix) == (prompts, "the parcel, ")
    assert run.content["config"]["model"]["prompts"] == prompts
    card = (tmp_path / "run" / "README.md").read_text("utf-8")
    assert '| `query` | `"the parcel, "` |' in card
    assert "The heads were trained on texts with the prompt `query`" in card
