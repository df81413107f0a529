"""What every test may ask for."""

import os
import sys
from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--real-data",
        default=os.environ.get("YUYUAN_REAL_DATA"),
        metavar="DIR",
        help="folder with gpt2_vocab, medquad and pubmed_xml, for the tests on real data",
    )
    parser.addoption(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="where the tiny models live; on cuda several ranks use as many GPUs, or share what there is",
    )


def pytest_configure(config):
    os.environ["YUYUAN_TEST_DEVICE"] = config.getoption("--device")  # the ranks of the pool read it


def pytest_report_header(config) -> str:
    if config.getoption("--device") == "cpu":
        return "tiny models on the CPU, ranks over gloo"
    import torch

    found = torch.cuda.device_count()
    return f"tiny models on CUDA, ranks over nccl up to {found}, more share the GPUs over gloo"


@pytest.fixture(scope="module", autouse=True)
def leaves_no_process_group():
    """What a module starts in this process it ends: the next one may start another."""
    yield
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_initialized():
        backend = dist.get_backend()
        dist.destroy_process_group()
        pytest.fail(f"this module left a process group over {backend} behind")


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
