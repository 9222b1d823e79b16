from __future__ import annotations

from benchmarks.report import Table

TABLE = Table(name="cost", title="Cost", columns=["trigger", "requests"], rows=[["ours", "1"]], notes=["over TLS"])


def test_a_section_is_replaced_and_the_rest_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.report.environment", lambda: {"date": "2026-11-22"})
    file = tmp_path / "benchmarks.md"
    file.write_text("before\n<!-- begin cost -->\nold\n<!-- end cost -->\nafter\n")

    TABLE.write_markdown(file)

    assert file.read_text() == (
        "before\n<!-- begin cost -->\n### Cost\n\n| trigger | requests |\n| --- | --- |\n| ours | 1 |\n\n"
        "- over TLS\n- Measured: date 2026-11-22.\n<!-- end cost -->\nafter\n"
    )


def test_a_file_without_the_section_becomes_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.report.environment", lambda: {"date": "2026-11-22"})
    file = tmp_path / "table.md"

    TABLE.write_markdown(file)

    assert file.read_text().startswith("### Cost\n")
