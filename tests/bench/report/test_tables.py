from __future__ import annotations

from bench.report.markdown import tidy
from bench.report.tables import count_table, fixed, scientific, spread, spread_table, table, value_range


def test_range_is_omitted_where_it_is_empty() -> None:
    assert spread([0.5, 0.4, 0.6], "efficiency") == "0.50 [0.40, 0.60]"
    assert spread([0.501, 0.5, 0.502], "efficiency") == "0.50"
    assert spread([0.846], "accuracy") == "0.846"
    assert spread(None) == ""
    assert spread([0.0, 0.0, 0.0], "server_cpu_ms_per_text") == ""
    assert spread([0.0, 0.0, 0.0], "padding") == "0.00"


def test_digits_depend_on_the_figure() -> None:
    assert spread([1234.5, 1000, 2000], "items_per_s") == "1,234 [1,000, 2,000]"
    assert spread([99.94, 99.94, 99.94], "p99_ms") == "99.9"
    assert spread([100.4, 99.0, 101.0], "p99_ms") == "100 [99, 101]"


def test_columns_keep_their_order_and_errors_show_only_if_there_are_any() -> None:
    row = {"p99_ms": [2.0] * 3, "efficiency": [0.5] * 3, "errors": [0.0] * 3, "upper_bound": [9.0] * 3}
    assert spread_table("load", {"a": row}).splitlines()[0] == "| load | efficiency | p99, ms |"
    rows = {"a": row, "b": {"errors": [1.0] * 3}}
    assert spread_table("load", rows).splitlines()[0] == "| load | efficiency | p99, ms | errors |"
    assert spread_table("load", rows).splitlines()[3] == "| b |  |  | 1 |"


def test_tables_align_numbers_right() -> None:
    assert table(["a", "b", "c"], [["x", 1, "y"]], [0, 2]) == "| a | b | c |\n| --- | --: | --- |\n| x | 1 | y |"
    assert count_table("cores", {"2": {"1": 1000.4}, "4": {"2": 5.0}}).splitlines()[2:] == [
        "| 2 | 1,000 |  |",
        "| 4 |  | 5 |",
    ]


def test_numbers_are_short() -> None:
    assert scientific(6.7e-6) == "6.7e-6"
    assert value_range([0.892, 0.9], 3) == "0.892 to 0.900"
    assert fixed(None) == ""


def test_prose_is_wrapped_and_tables_and_code_are_not() -> None:
    row = f"| {'x' * 200} |"
    code = f"```console\n$ {'long ' * 40}\n\n\n$ end\n```"
    text = tidy(f"# Title\n\n\n\n{'word ' * 60}\n\n- {'item ' * 50}\n- second\n\n{row}\n\n{code}\n")
    assert max(len(line) for line in text.splitlines() if line.startswith(("word", "-", "  "))) <= 120
    assert "\n- second\n" in text
    assert row in text
    assert code in text
    assert "\n\n\n" not in text.partition("```")[0]
