"""Pictures of a quarter of the resolution: drawing them is most of what these tests take."""

import pytest

from headrank_pipeline.comparison import canvas


@pytest.fixture(scope="module")
def small_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canvas, "_DPI", 50)
        yield
