"""Runs each test with a `bench` parameter on every data plane."""

import sys
from collections.abc import Iterator

import pytest

from tests.plane.benches import Bench, PortableBench, ReferenceBench, WorkersBench

PLANES: dict[str, type[Bench]] = {"reference": ReferenceBench, "portable": PortableBench, "workers": WorkersBench}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "bench" not in metafunc.fixturenames:
        return
    timed = getattr(metafunc.function, "time_passes", False) or not sys.platform.startswith("linux")
    names = [name for name in PLANES if not (timed and name == "workers")]
    metafunc.parametrize("bench", names, indirect=True)


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = PLANES[request.param]()
    yield made
    made.close()


@pytest.fixture(scope="module", autouse=True)
def workers_end() -> Iterator[None]:
    yield
    WorkersBench.end()
