"""What every test may ask for."""

import os
from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--real-data",
        default=os.environ.get("YUYUAN_REAL_DATA"),
        metavar="DIR",
        help="folder with gpt2_vocab, medquad and pubmed_xml, for the tests on real data",
    )


@pytest.fixture(scope="session")
def ranks():
    """Runs a function on several ranks: ranks.run(8, function, *arguments)."""
    from rank_pool import RankPool

    return RankPool()


@pytest.fixture(scope="session")
def real_data(request) -> Path:
    """The folder of real data; the test is skipped without it."""
    folder = request.config.getoption("--real-data")
    if not folder:
        pytest.skip("needs real data: --real-data DIR or YUYUAN_REAL_DATA")
    return Path(folder)


@pytest.fixture(scope="module")
def one_thread():
    """Many tiny steps: threads would wait for each other longer than they compute."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """A folder with a tokenizer and shards of the sample data (see commands.prepare)."""
    from commands import prepare

    return prepare(tmp_path_factory.mktemp("prepared"))
