"""The jobs of PyTorch's tutorials: ours gives what torch.func gives, again and again."""

import pytest
import torch
from torch_func_tutorials import Job, furthest, jobs

import pushforward


@pytest.mark.parametrize("job", list(jobs()), ids=lambda job: job[1])
def test_ours_is_what_torch_func_gives(job: Job) -> None:
    _, _, made_with = job
    ours, expected = made_with(pushforward), made_with(torch.func)()
    for _ in range(4):
        assert furthest(ours(), expected) < 1e-5
