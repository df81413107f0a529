"""The results of tools/gpu_check.sh as a section of docs/performance.md: from a fixture."""

import importlib
import json

import pytest

from megatron_yuyuan.errors import DataError


@pytest.fixture
def report(repository, monkeypatch):
    """report([...]) is tools/benchmark/gpu_report.py with these arguments."""
    monkeypatch.syspath_prepend(repository / "tools" / "benchmark")
    return importlib.import_module("gpu_report").main


ABOUT = {
    "date": "2000-01-02",
    "device": "a GPU",
    "clocks": "1980 MHz",
    "python": "3.12.0",
    "torch": "2.11.0",
    "apex": None,
    "copy_bytes_per_second": 4e12,
    "matmul_flops_per_second": 7.9e14,
}
"""Of a fixture; no machine gave these figures."""
ROWS = {
    "layer_norm, cuda": {
        "error": 3e-3,
        "agrees": False,
        "forward": {"seconds": 25e-6, "bytes_per_second": 3.6e12, "share_of_copy": 0.9},
    },
    "layer_norm, apex": {"not_measured": "KernelsError: there is no apex"},
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "kernels.json").write_text(json.dumps({"about": ABOUT, "rows": ROWS}))
    return tmp_path


def test_the_section_says_what_was_measured_and_what_not(report, folder, capsys):
    training = {
        "3.5b, cuda": {
            "tokens_per_second": 26000.4,
            "tflops": 569.0,
            "tflops_megatron_formula": 583.6,
            "mfu": 0.575,
            "share_of_measured_matmul": 0.72,
            "memory_bytes": 100 * 2**30,
            "predicted_bytes": 103 * 2**30,
            "losses": [10.9, 10.5],
        }
    }
    (folder / "training.json").write_text(json.dumps({"about": ABOUT, "rows": training}))
    (folder / "tests.xml").write_text(
        '<testsuites><testsuite tests="9" failures="1" errors="0" skipped="2"/></testsuites>'
    )
    report([str(folder)])
    said = capsys.readouterr().out
    for line in (
        "2000-01-02, a GPU (1980 MHz); python 3.12.0, torch 2.11.0. `tools/gpu_check.sh`",
        "- kernels: copy 4.00 TB/s, bfloat16 product of 8192 790 TFLOP/s",
        "- tests: 9 tests, 1 failures, 0 errors, 2 skipped",
        "| layer_norm, cuda | forward | 25.0 | 3600 | 90% | 3.0e-03, **wrong** |",
        "- layer_norm, apex: KernelsError: there is no apex",
        "| 3.5b, cuda | 26000 | 569 | 584 | 57.5% | 72.0% | 100.0 | 103.0 (+3.0%) | 10.5000 |",
    ):
        assert line in said


def test_the_whole_suite_counts_instead_of_the_first_stage(report, folder, capsys):
    for name, tests in (("tests", 9), ("suite-train", 20), ("suite-root", 3)):
        suite = f'<testsuite tests="{tests}" failures="1" errors="0" skipped="2"/>'
        (folder / f"{name}.xml").write_text(f"<testsuites>{suite}</testsuites>")
    report([str(folder)])
    assert "- tests: 23 tests, 2 failures, 0 errors, 4 skipped" in capsys.readouterr().out


def test_the_section_replaces_itself_in_a_page(report, folder):
    page = folder / "performance.md"
    page.write_text("# Performance\n\nOld.\n")
    report([str(folder), "--page", str(page)])
    once = page.read_text()
    assert once.startswith("# Performance\n\nOld.\n\n<!-- gpu_check: begin -->\n## On a GPU\n")
    page.write_text(once + "\nAfter.\n")
    rows = {"layer_norm, cuda": ROWS["layer_norm, cuda"]}
    (folder / "kernels.json").write_text(json.dumps({"about": ABOUT, "rows": rows}))
    report([str(folder), "--page", str(page)])
    twice = page.read_text()
    assert twice.startswith("# Performance\n\nOld.\n") and twice.endswith("\nAfter.\n")
    assert "apex" in once and "apex" not in twice


@pytest.mark.parametrize(
    ("page", "device", "what"),
    [
        ("<!-- gpu_check: begin -->", "a GPU", "does not hold"),
        ("<!-- gpu_check: end --> <!-- gpu_check: begin -->", "a GPU", "does not hold"),
        ("# Performance", "cpu", "holds results of a CPU"),
    ],
)
def test_a_page_that_must_not_be_written_is_not(report, folder, page, device, what):
    path = folder / "performance.md"
    path.write_text(page)
    data = {"about": {**ABOUT, "device": device}, "rows": ROWS}
    (folder / "kernels.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match=what):
        report([str(folder), "--page", str(path)])
    assert path.read_text() == page


def test_a_folder_without_results_is_refused(report, tmp_path):
    with pytest.raises(DataError, match="holds no results"):
        report([str(tmp_path)])
