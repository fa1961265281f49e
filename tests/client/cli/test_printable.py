"""Strings of a server on the terminal of its client."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from polyhead_client.cli.failure import CommandError
from polyhead_client.cli.printable import printable
from polyhead_client.cli.rates import rates
from polyhead_client.cli.top import render_plain
from polyhead_server.printable import printable as server_printable

from tests.support.worker_stats import worker_stats

HOSTILE = "m\x1b[31m\u202e\u200b\x9b\n2" + "x" * 10_000


@given(st.text(st.characters()))
def test_client_and_server_escape_alike(text: str) -> None:
    assert printable(text) == server_printable(text)
    assert printable(text).isprintable()


def test_long_text_is_cut() -> None:
    assert printable("x" * 12, 10) == "xxxxxxxxxx... (2 more characters)"


def test_error_message_is_one_printable_line() -> None:
    message = CommandError(1, f"{HOSTILE} \x85 end").format_message()
    assert message.isprintable()
    assert len(message) < 5000


def test_top_shows_a_model_id_and_reasons_escaped() -> None:
    before, after = worker_stats(), worker_stats(after_s=2)
    for stats in (before, after):
        stats.model_id = HOSTILE
    after.item_errors_total[HOSTILE] = 5
    lines = render_plain("unix:admin", rates([before], [after]), 200).splitlines()
    assert all(line.isprintable() for line in lines)
    assert "\\x1b[31m" in "".join(lines)


@pytest.mark.parametrize(("set_by_the_user", "expected"), [({}, "NONE"), ({"GRPC_VERBOSITY": "DEBUG"}, "DEBUG")])
def test_command_silences_grpc_unless_the_user_has_decided(set_by_the_user: dict[str, str], expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"} | set_by_the_user
    program = "import os, polyhead_client.cli; print(os.environ['GRPC_VERBOSITY'])"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def test_library_leaves_the_environment_alone() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    program = "import os, polyhead_client; polyhead_client.Client; print('GRPC_VERBOSITY' in os.environ)"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
