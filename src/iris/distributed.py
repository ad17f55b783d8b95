"""Several processes that work as one: started by accelerate, one a GPU, or on a CPU a few that talk through gloo.

    iris train --gpus 2 ...                                     # one host: Iris starts itself under accelerate
    accelerate launch --multi_gpu --num_processes 16 --num_machines 2 --machine_rank 0 --main_process_ip HOST \
        --main_process_port 29500 -m iris train ...             # several hosts, on each with its rank; --out is shared
    iris evaluate --gpus 2 ...                                  # torch's agent, as under accelerate, starts copies

Every process holds the whole adapter and computes its share of a step's sequences; the gradients are added up before
the optimizer's step, so that it is the step of one process. Where the frozen base is too large for one GPU, `shard`
spreads it over all of them with FSDP2.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .errors import InputError, RunError

if TYPE_CHECKING:
    import torch

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def rank() -> int:
    """The number of this process; the one of number 0 writes and speaks."""
    return int(os.environ.get("RANK", 0))


def size() -> int:
    """How many processes work as one; 1 where none was started by a launcher."""
    return int(os.environ.get("WORLD_SIZE", 1))


def share(batch_size: int, processes: int) -> int:
    """Sequences of one optimizer step for each process. InputError where they cannot be dealt out evenly."""
    if processes < 1 or batch_size % processes:
        raise InputError(
            f"{processes} GPUs cannot share the {batch_size} sequences of a step evenly; choose a number that divides "
            f"batch_size, or another --set batch_size"
        )
    return batch_size // processes


def launch(arguments: list[str], processes: int) -> None:
    """Run `iris ARGUMENTS` in `processes` processes of this host, under accelerate, to their end.

    SystemExit with the code of a process that has told itself what went wrong; RunError if one was killed: the others
    are ended then. InputError if there are fewer GPUs."""
    from accelerate.commands.launch import launch_command, launch_command_parser

    options = ["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1", "--gpu_ids", "all"]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    options += ["--num_cpu_threads_per_process", str(threads(processes)), "--module", "iris"]
    with _watched(processes):
        launch_command(launch_command_parser().parse_args([*options, *arguments]))


def fork(processes: int, work: Callable[..., None], *arguments: Any) -> None:
    """Run `work(*arguments)` in `processes` copies of this process, which has read its packages but has touched no GPU.
    It ends, and tells what went wrong, as `launch`."""
    import torch
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    def one(*arguments: Any) -> None:
        torch.set_num_threads(threads(processes))
        work(*arguments)

    config = LaunchConfig(1, 1, processes, rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="fork",
                          run_id="iris", max_restarts=0, monitor_interval=0.1)  # fmt: skip
    with _watched(processes):
        elastic_launch(config, one)(*arguments)


def threads(processes: int) -> int:
    """Threads for each of the processes of this host."""
    return max(1, (os.cpu_count() or 1) // processes)


@contextmanager
def _watched(processes: int) -> Iterator[None]:
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise InputError(f"--gpus {processes} asks for more than the {torch.cuda.device_count()} GPUs of this machine")
    logging.disable(logging.CRITICAL)  # torch's agent would print traces of what the processes have told
    try:
        yield
    except ChildFailedError as error:
        codes = {number: failure.exitcode for number, failure in error.failures.items()}
        for number, code in codes.items():
            if code < 0 and code != -signal.SIGTERM:  # with SIGTERM the agent ended the others
                name = signal.Signals(-code).name
                raise RunError(f"process {number + 1} of {processes} was killed ({name})") from None
        raise SystemExit(max(codes.values())) from None
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None
    finally:
        logging.disable(logging.NOTSET)


def join() -> None:
    """What a process does before it works with the others: meet them, end with its launcher, be quiet unless first."""
    if size() == 1:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    import torch
    from accelerate import PartialState

    if not torch.cuda.is_available():
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # it would be cpu:0, which torch.load takes for no device
    PartialState(cpu=not torch.cuda.is_available())
    if rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def leave() -> None:
    """The counterpart of `join`, when all is done: for all at once, as one that goes while another still receives from
    it may crash."""
    if size() > 1:
        import torch

        wait()
        torch.distributed.destroy_process_group()


def wait() -> None:
    """Until every process has come here."""
    gather([0.0])


def gather(values: list[float]) -> list[list[float]]:
    """The `values` of every process, in the order of their ranks."""
    if size() == 1:
        return [values]
    import torch

    mine = torch.tensor(values, dtype=torch.float64, device=device())
    each = [torch.empty_like(mine) for _ in range(size())]
    torch.distributed.all_gather(each, mine)
    return [one.tolist() for one in each]


def device() -> torch.device:
    """The device of this process."""
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def add_up(tensors: list[torch.Tensor]) -> None:
    """Replace each tensor by its sum over all processes, in one exchange. All are of one type and device."""
    import torch

    flat = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])


def shard(adapted: Any) -> None:
    """Spread the frozen base of a PEFT Llama over the processes (FSDP2, torch's fully_shard): of every layer each holds
    a part, and gathers the whole for as long as that layer computes. The adapter stays whole in every process, so that
    checkpoints are those of one process. 4-bit weights travel as they are, packed."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from .fast import FastLinear

    llama, here = adapted.get_base_model(), device()
    whole = {parameter for parameter in adapted.parameters() if parameter.requires_grad}
    ends = [llama.model.embed_tokens, llama.lm_head]
    if ends[0].weight is ends[1].weight:  # tied: used at both ends of a step, so kept
        whole.add(ends.pop().weight)
        ends.clear()
    for parameter in whole:
        parameter.data = parameter.data.to(here)
    for module in adapted.modules():
        if isinstance(module, FastLinear):
            module.get_ready_to_shard(here)
    mesh = init_device_mesh(here.type, (size(),))
    for module in [*llama.model.layers, *ends, llama.model]:
        fully_shard(module, mesh=mesh, ignored_params=whole)
    if here.type == "cuda":
        torch.cuda.empty_cache()
