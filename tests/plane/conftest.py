"""Every data plane is asked the same."""

from collections.abc import Iterator

import pytest

from tests.plane.benches import Bench, PortableBench, ReferenceBench


@pytest.fixture(params=[ReferenceBench, PortableBench], ids=["reference", "portable"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = request.param()
    yield made
    made.close()
