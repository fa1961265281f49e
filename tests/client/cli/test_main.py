from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from click.testing import CliRunner, Result
from polyhead.v1 import model_pb2
from polyhead_client.cli.main import main

from tests.support.fake_server import BREAK, ERROR, FakeServicer, embedding_of

Run = Callable[..., Result]


@pytest.fixture
def run(servicer: FakeServicer) -> Run:
    """Runs the command against the server: ``run(*arguments, input=bytes)``."""

    def ran(*arguments: str, input: bytes = b"") -> Result:  # noqa: A002
        return CliRunner(env={"POLYHEAD_TARGET": servicer.target}).invoke(main, arguments, input=input)

    return ran


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout_bytes.splitlines()]


def received(result: Result) -> list[str]:
    """Returns the text that the server received for each line."""
    return [line["classification"]["scores"][0]["label"] for line in lines(result)]


def test_analyze_prints_the_documented_json(run: Run) -> None:
    result = run("analyze", "abc")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert lines(result) == [
        {
            "id": "0",
            "embedding": [float(str(np.float32(number))) for number in embedding_of("abc")],
            "classification": {
                "head": "topic",
                "scores": [{"label": "abc", "probability": 0.9}, {"label": "other", "probability": 0.1}],
            },
            "sentiment": {"head": "mood", "probability": 0.75, "label": "abc"},
            "truncation": {
                "truncated": False,
                "tokens_seen": 3,
                "tokens_used": 3,
                "cut_at_code_point": None,
                "windows": 1,
            },
        }
    ]


def test_printed_embedding_equals_the_received_float32(run: Run) -> None:
    (line,) = lines(run("embed", "日本語"))
    assert np.array_equal(np.array(line["embedding"], np.float32), np.array(embedding_of("日本語"), np.float32))


@pytest.mark.parametrize(
    ("command", "call"),
    [
        ("analyze", "StreamAnalyze"),
        ("embed", "StreamEmbed"),
        ("classify", "StreamClassify"),
        ("sentiment", "StreamSentiment"),
    ],
)
def test_each_command_makes_its_own_rpc(run: Run, servicer: FakeServicer, command: str, call: str) -> None:
    assert received(run(command, "one", "two")) == ["one", "two"]
    assert servicer.calls == [call]


def test_stdin_has_one_text_per_line(run: Run) -> None:
    texts = [f"naïve {number}" for number in range(500)]
    result = run("classify", input="\n".join(texts).encode())
    assert received(result) == texts
    assert [line["id"] for line in lines(result)] == [str(number) for number in range(500)]


def test_only_newlines_separate_texts_and_empty_lines_count(run: Run) -> None:
    assert received(run("classify", input="a\r\n\nb\u2028c\x0bd\n".encode())) == ["a", "", "b\u2028c\x0bd"]


def test_line_that_is_not_utf8_gets_an_error_and_the_others_continue(run: Run) -> None:
    result = run("classify", input=b"one\ncaf\xe9\n\xff\xfe\nfour\n")
    first, second, third, fourth = lines(result)
    assert [first["id"], second["id"], third["id"], fourth["id"]] == ["0", "1", "2", "3"]
    assert second["error"]["reason"] == third["error"]["reason"] == "TEXT_NOT_UTF8"
    assert "error" not in first
    assert fourth["classification"]["scores"][0]["label"] == "four"
    assert result.exit_code == 1


def test_item_error_is_printed_as_a_line_and_exits_with_1(run: Run) -> None:
    result = run("analyze", "good", ERROR + "no")
    assert lines(result)[1] == {
        "id": "1",
        "error": {"code": "INVALID_ARGUMENT", "reason": "REQUESTED", "message": "error:no"},
    }
    assert (result.exit_code, result.stderr) == (1, "")


def test_jsonl_keeps_ids(run: Run) -> None:
    result = run("classify", "--jsonl", input='{"id": "é", "text": "a\\nb"}\n{"id": "", "text": ""}\n'.encode())
    assert [line["id"] for line in lines(result)] == ["é", ""]
    assert received(result) == ["a\nb", ""]


def test_jsonl_id_with_half_an_emoji_comes_back_as_valid_json(run: Run) -> None:
    result = run("classify", "--jsonl", input=b'{"id": "\\ud83d", "text": "ok"}\n{"id": "2", "text": "ok"}\n')
    first, second = lines(result)
    assert (first["id"], second["id"], received(result)) == ("\ud83d", "2", ["ok", "ok"])


MALFORMED = [
    (b"nonsense", "not valid JSON"),
    (b'{"id": "2", "text": "tw', "not valid JSON"),
    (b'["id", "text"]', "not a JSON object"),
    (b"null", "not a JSON object"),
    (b'{"id": "2"}', 'no field "text"'),
    (b'{"text": "two"}', 'no field "id"'),
    (b'{"id": 2, "text": "two"}', '"id" is the number 2, not a string'),
    (b'{"id": null, "text": "two"}', '"id" is null'),
    (b'{"id": "2", "text": null}', '"text" is null'),
    (b'{"id": "2", "text": NaN}', '"text" is the number nan'),
    (b'{"id": "2", "text": ["two"]}', '"text" is an array'),
    (b'{"id": "2", "text": {"de": "zwei"}}', '"text" is an object'),
    (b'{"id": "2", "text": true}', '"text" is true'),
    (b'{"id": "2", "text": "two", "text": "zwei"}', "the field 'text' occurs twice"),
    (b'{"id": "2", "id": "3", "text": "two"}', "the field 'id' occurs twice"),
    (b'{"id": "2", "text": "caf\xe9"}', "not valid UTF-8: byte 25 is 0xe9"),
    (b'{"id": "2", "text": "two", "n": ' + b"9" * 5000 + b"}", "not valid JSON"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"id": "2", "text": ' + b'{"a":' * 100_000, "nested too deeply"),
]


def test_malformed_jsonl_lines_get_errors_with_their_numbers_and_the_others_are_answered(run: Run) -> None:
    content = b"".join(b'{"id": "1", "text": "one"}\n%s\n' % line for line, _ in MALFORMED)
    result = run("classify", "--jsonl", input=content + b'{"id": "3", "text": "three"}\n')
    *before, last = lines(result)
    for number, (line, problem) in enumerate(MALFORMED):
        answered, rejected = before[2 * number : 2 * number + 2]
        assert answered["classification"]["scores"][0]["label"] == "one"
        assert (rejected["line"], rejected["error"]["code"]) == (2 * number + 2, "INVALID_ARGUMENT"), line[:50]
        assert rejected["id"] in {None, "2"}
        assert rejected["error"]["reason"] == ("TEXT_NOT_UTF8" if "UTF-8" in problem else "MALFORMED_LINE")
        assert problem in rejected["error"]["message"]
    assert last["classification"]["scores"][0]["label"] == "three"
    assert (result.exit_code, result.stderr) == (1, "")


def test_malformed_lines_keep_their_position_in_completion_order_too(run: Run) -> None:
    records = [b'{"id": "%d", "text": "ok"}' % number if number % 3 else b"no" for number in range(300)]
    result = run("classify", "--jsonl", "--order", "completion", input=b"\n".join(records))
    assert sorted(line["line"] for line in lines(result) if "error" in line) == list(range(1, 301, 3))
    assert sum("classification" in line for line in lines(result)) == 200


def test_file_of_malformed_lines_alone_needs_no_answer(run: Run) -> None:
    result = run("classify", "--jsonl", input=b"no\nno\n")
    assert [line["line"] for line in lines(result)] == [1, 2]
    assert result.exit_code == 1


def test_training_rows_are_numbered(run: Run) -> None:
    rows = b'{"text": "one", "label": "billing", "sentiment": 1}\n{"text": "two", "label": null, "sentiment": 0.5}\n'
    result = run("classify", "--jsonl", input=rows)
    assert (received(result), [line["id"] for line in lines(result)]) == (["one", "two"], ["0", "1"])
    assert result.exit_code == 0


def test_repeated_fields_that_are_not_read_are_ignored(run: Run) -> None:
    result = run("classify", "--jsonl", input=b'{"text": "one", "tag": 1, "tag": 2, "meta": {"x": 1, "x": 2}}\n')
    assert (received(result), result.exit_code) == (["one"], 0)


def test_first_line_without_an_id_does_not_reject_the_others(run: Run) -> None:
    result = run("classify", "--jsonl", input=b'{"text": "one"}\n{"id": "b", "text": "two"}\n{"text": "three"}\n')
    assert [line["id"] for line in lines(result)] == ["0", "b", None]
    assert lines(result)[2]["line"] == 3


def test_jsonl_skips_blank_lines_and_counts_them(run: Run) -> None:
    result = run("classify", "--jsonl", input=b'{"id": "1", "text": "one"}\n\n \r\n{"id": "4", "text": "four"}\n\nno\n')
    assert [line.get("line") for line in lines(result)] == [None, None, 6]


def test_failure_after_the_first_answers_is_no_usage_error(run: Run, servicer: FakeServicer) -> None:
    servicer.stream_failures = [(2, grpc.StatusCode.UNIMPLEMENTED)]
    result = run("classify", "one", "two", "three")
    assert (result.exit_code, received(result)) == (1, ["one", "two"])
    assert "after 2 answers" in result.stderr


def test_labels_and_score_request_their_task_alone(run: Run, servicer: FakeServicer) -> None:
    (labelled,) = lines(run("labels", "late"))
    (scored,) = lines(run("score", "late"))
    assert [list(request.tasks) for request in servicer.requests] == [[4], [5]]
    assert labelled["label_sets"][0]["labels"] == ["late"]
    assert [one["value"] for one in scored["scores"]] == [1.9, -0.7]


@pytest.mark.parametrize(("command", "missing"), [("classify", "classification"), ("sentiment", "sentiment")])
def test_task_without_a_head_is_an_error_that_names_the_heads(
    run: Run, servicer: FakeServicer, command: str, missing: str
) -> None:
    servicer.missing = [missing]
    for arguments in ([command], ["analyze", "--tasks", missing]):
        result = run(*arguments, "text")
        (line,) = lines(result)
        assert line["error"]["reason"] == "TASK_NOT_AVAILABLE"
        assert line["error"]["message"].endswith("its heads are: topic, mood")
        assert result.exit_code == 1
    assert run("analyze", "text").exit_code == 0  # control: every task that the model has


@pytest.mark.parametrize(("jsonl", "line"), [([], "text"), (["--jsonl"], '{"id": "0", "text": "text"}')])
def test_byte_order_mark_is_removed(run: Run, jsonl: list[str], line: str) -> None:
    assert received(run("classify", *jsonl, input=f"\ufeff{line}\n".encode())) == ["text"]


def test_options_reach_the_server(run: Run, servicer: FakeServicer) -> None:
    options = ["--tasks", "classification,sentiment", "--truncation", "window", "--order", "completion", "--timings"]
    options += ["--expect-embedding-space", "00112233445566aa", "--prompt", "query"]
    (line,) = lines(run("analyze", *options, "--encoding", "float16", "--dimensions", "2", "text"))
    (request,) = servicer.requests
    assert (list(request.tasks), request.options.truncation, request.order) == ([2, 3], 3, 2)
    assert request.options.prompt == "query"
    assert request.options.expected_fingerprints.embedding_space == "00112233445566aa"
    assert (request.embedding_options.encoding, request.embedding_options.dimensions) == (2, 2)
    assert line["timings"]["total_s"] == 1.5


@pytest.mark.parametrize(
    "arguments",
    [
        ["analyze", "--tasks", "poetry", "text"],
        ["analyze", "--tasks", "", "text"],
        ["classify", "--jsonl", "text"],
        ["classify", "--order", "random", "text"],
        ["classify", "--expect-embedding-space", "0011", "text"],
        ["classify", "--encoding", "float16", "text"],
        ["compose", "text"],
    ],
)
def test_usage_error_exits_with_2_and_no_output(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr


def test_empty_input_prints_nothing(run: Run) -> None:
    result = run("analyze")
    assert (result.exit_code, result.output) == (0, "")


@pytest.mark.parametrize("arguments", [["analyze", "text"], ["analyze"], ["info"]])
def test_unreachable_server_exits_with_2_and_one_line(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, [*arguments, "--target", "127.0.0.1:1"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("polyhead: UNAVAILABLE: no server at 127.0.0.1:1 (Connection refused)")
    assert result.stderr.count("\n") == 1


def test_failed_call_exits_with_1_and_one_line(run: Run) -> None:
    result = run("analyze", BREAK)
    assert result.exit_code == 1
    assert result.stderr.endswith("INTERNAL: requested failure\n")
    assert result.stderr.count("\n") == 1


def test_text_of_a_server_cannot_control_the_terminal(run: Run, servicer: FakeServicer) -> None:
    servicer.failure_message = "\x1b[2J\x1b]0;owned\x07\nline\u202e"
    servicer.unary_failures = [grpc.StatusCode.INTERNAL]
    result = run("info")
    assert result.stderr.endswith(r"INTERNAL: \x1b[2J\x1b]0;owned\x07 line\u202e" + "\n")


def test_info_prints_a_plain_table_to_a_pipe(run: Run) -> None:
    text = run("info").stdout
    for fact in ["fake-0123456789ab", "onnx, cpu, fp32", "no cuda here", "account, billing", "threshold 0.5", "256"]:
        assert fact in text
    assert "\x1b" not in text


def test_info_lines_in_a_pipe_are_neither_styled_nor_wrapped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    assert "labels account, billing" in run("info").stdout


@pytest.mark.usefixtures("without_rich")
def test_texts_and_model_are_printed_without_rich(run: Run) -> None:
    assert received(run("analyze", "one")) == ["one"]
    assert json.loads(run("info", "--json").stdout)["model_id"] == "fake-0123456789ab"
    assert "labels account, billing" in run("info").stdout


def test_info_prints_the_prompts_with_their_spaces(run: Run) -> None:
    lines = run("info").stdout.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("prompts"))
    assert [line.split(maxsplit=1)[1] for line in (lines[first], f"- {lines[first + 1]}")] == [
        'passage: "passage: "',
        'query: "query: "',
    ]


def test_info_prints_json_on_request(run: Run) -> None:
    model = json.loads(run("info", "--json").stdout)
    assert model["prompts"] == {"passage": "passage: ", "query": "query: "}
    assert [head["labels"] for head in model["heads"]] == [["account", "billing"], ["bad", "good"]]
    assert model["fingerprints"]["embedding_space"] == "00112233445566aa"


def test_labels_outside_of_the_encoding_of_stdout_are_escaped(servicer: FakeServicer) -> None:
    labels = ["Rückgabe", "退款", "😀"]
    servicer.additional_heads = [
        model_pb2.HeadInfo(name="tags", kind=model_pb2.HEAD_KIND_MULTILABEL, labels=labels, thresholds=[0.5] * 3)
    ]
    runner = CliRunner(charset="latin-1", env={"POLYHEAD_TARGET": servicer.target})
    table = runner.invoke(main, ["info"])
    assert table.exit_code == 0
    assert r"labels Rückgabe from 0.5, \u9000\u6b3e from 0.5, \U0001f600 from 0.5" in table.stdout
    model = json.loads(runner.invoke(main, ["info", "--json"]).stdout_bytes.decode())
    assert model["heads"][-1]["labels"] == labels


@pytest.fixture
def process(servicer: FakeServicer) -> Iterator[subprocess.Popen[bytes]]:
    """The command as a process whose pipes stay open."""
    command = [sys.executable, "-m", "polyhead_client", "classify", "--target", servicer.target]
    # The process can import what this one can; its stdout is buffered, whatever the environment says.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("PYTHONUNBUFFERED", None)
    pipe = subprocess.PIPE
    # A background job of a shell ignores SIGINT, and its child processes inherit that.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, bufsize=0) as process:
        signal.signal(signal.SIGINT, previous)
        yield process
        process.kill()


def send(process: subprocess.Popen[bytes], text: str) -> dict[str, Any]:
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{text}\n".encode())
    answer: dict[str, Any] = json.loads(process.stdout.readline())
    return answer


def test_command_answers_each_line_before_the_next_arrives(process: subprocess.Popen[bytes]) -> None:
    seen = [send(process, text)["classification"]["scores"][0]["label"] for text in ("one", "zwei", "三")]
    out, error = process.communicate()
    assert (seen, out, error, process.returncode) == (["one", "zwei", "三"], b"", b"", 0)


def test_command_exits_silently_on_a_broken_pipe(process: subprocess.Popen[bytes]) -> None:
    send(process, "one")
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    process.stdin.write(b"two\n")  # stdin stays open: only the closed pipe can end the process
    assert (process.wait(20), process.stderr.read()) == (0, b"")


def test_command_exits_silently_when_interrupted(process: subprocess.Popen[bytes]) -> None:
    send(process, "one")
    assert process.stderr
    process.send_signal(signal.SIGINT)
    assert (process.wait(20), process.stderr.read()) == (130, b"")


def run_in_shell(servicer: FakeServicer, redirections: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in a shell with redirections."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "POLYHEAD_TARGET": servicer.target}
    command = f"{sys.executable} -m polyhead_client {redirections}"
    return subprocess.run(
        ["sh", "-c", command], check=False, env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("command", ["classify one two", "info", "--help"])
def test_full_disk_exits_with_1_and_one_line(servicer: FakeServicer, command: str) -> None:
    done = run_in_shell(servicer, f"{command} > /dev/full")
    assert done.returncode == 1
    assert done.stderr == "polyhead: input or output: No space left on device\n"


@pytest.mark.parametrize(("redirections", "name"), [("classify <&-", "stdin"), ("classify one >&-", "stdout")])
def test_closed_stdin_or_stdout_is_a_usage_error(servicer: FakeServicer, redirections: str, name: str) -> None:
    done = run_in_shell(servicer, redirections)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"Error: {name} is closed")


def test_info_without_a_stdout_succeeds(servicer: FakeServicer) -> None:
    done = run_in_shell(servicer, "info >&-")
    assert (done.returncode, done.stderr) == (0, "")


def test_key_file_that_is_not_text_is_a_usage_error_and_not_shown(run: Run, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\xff\xfeSECRET")
    result = run("info", "--api-key-file", str(tmp_path / "key"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--api-key-file" in result.stderr
    assert "not valid UTF-8 text" in result.stderr
    assert "SECRET" not in result.stderr


def test_help_lists_every_exit_status(run: Run) -> None:
    assert "130 interrupted" in " ".join(run("--help").stdout.split())
