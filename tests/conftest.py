"""The order of the test files: the longest first, so that parallel workers end together."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from utils import well_formed

LONGEST = (
    "test_quickstart",
    "test_devices",
    "test_distributed",
    "test_launch",
    "test_samplers",
    "test_resume",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files; the tests of a file keep their order."""
    place = {name: number for number, name in enumerate(LONGEST)}

    def rank(item: pytest.Item) -> tuple[int, bool]:
        return place.get(item.path.stem, len(place)), item.get_closest_marker("slow") is None

    files: dict[str, tuple[int, bool]] = {}
    for item in items:
        name = item.nodeid.partition("::")[0]
        files[name] = min(files.get(name, rank(item)), rank(item))
    items.sort(key=lambda item: files[item.nodeid.partition("::")[0]])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test printed is well-formed text: parallel workers could not send half surrogates."""
    report = yield
    report.sections = [(name, well_formed(text)) for name, text in report.sections]
    if report.failed:
        report.longrepr = well_formed(str(report.longrepr))
    return report
