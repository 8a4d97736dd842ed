"""Fixtures: clusters whose logs are shown when a test fails."""
import json
import sys

import pytest

from cluster import SOURCE_DIR, Cluster

sys.dont_write_bytecode = True


@pytest.fixture(scope="session")
def scenes():
    with open(SOURCE_DIR / "tests" / "data" / "scenes.jsonl", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.when == "call" and report.failed:
        for cluster in (value for value in item.funcargs.values() if isinstance(value, Cluster)):
            report.sections.append(("logs of the cluster", cluster.logs()[-12000:]))


@pytest.fixture(scope="module")
def shared_cluster(request, tmp_path_factory):
    """One for all tests of a file; CLUSTER in the module says how it is made."""
    with Cluster(tmp_path_factory.mktemp("cluster"), **getattr(request.module, "CLUSTER", {})) as cluster:
        yield cluster


@pytest.fixture
def new_cluster(tmp_path):
    """Makes clusters for one test alone."""
    made = []

    def make(**options):
        directory = tmp_path / str(len(made))
        directory.mkdir()
        made.append(Cluster(directory, **options))
        return made[-1]
    yield make
    problems = []
    for cluster in made:
        try:
            cluster.close()
        except AssertionError as error:
            problems.append(str(error))
    assert not problems, "\n".join(problems)
