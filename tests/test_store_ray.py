"""The store written by a local Ray: a worker is killed midway, and what comes out is complete and the same."""

import os
import signal
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from stillroom import store
from stillroom.models.small import cnn
from stillroom.store.on_ray import write_on_ray

ray = pytest.importorskip("ray")


class Dies(nn.Module):
    """A teacher whose process is killed, once, when it is asked about sample 700."""

    def __init__(self, net, flag):
        super().__init__()
        self.net, self.flag = net, str(flag)

    def forward(self, x):
        if self.flag and 700 in x.sample_ids.tolist():
            try:
                os.close(os.open(self.flag, os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGKILL)
            except FileExistsError:
                pass
        return self.net(x)


@pytest.mark.slow
def test_two_workers_one_of_them_killed_write_the_store_that_one_process_writes(tmp_path):
    torch.manual_seed(0)
    net, data = cnn(8, channels=3).eval(), TensorDataset(torch.rand(1200, 3, 16, 16), torch.zeros(1200).long())
    store.write(tmp_path / "one", Dies(net, ""), data, rows=100, batch=40)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    except (RuntimeError, OSError, ray.exceptions.RayError) as error:
        pytest.skip(f"Ray does not start on this machine: {error}")
    try:
        write_on_ray(tmp_path / "two", Dies(net, tmp_path / "died"), data, writers=2, rows=100, batch=40)
    finally:
        ray.shutdown()
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert (tmp_path / "died").exists()
    found = [{p.name: p.read_bytes() for p in (tmp_path / who).glob("*.rows")} for who in ("one", "two")]
    assert len(found[0]) == 12 and found[0] == found[1]
    assert (tmp_path / "one" / "store.json").read_text() == (tmp_path / "two" / "store.json").read_text()
